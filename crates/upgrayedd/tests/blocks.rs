//! Whole attentions, MLPs and layers: they go, nothing stumbles over what is not there, and they come back.
#![allow(missing_docs, clippy::unwrap_used)]

mod small;

use small::{data, result};
use upgrayedd::budget::Shape;
use upgrayedd::data::Pass;
use upgrayedd::event::Silent;
use upgrayedd::grow::gains;
use upgrayedd::learner::{Learner, Update};
use upgrayedd::model::{Batch, GenerateOptions, Hooks, Model};
use upgrayedd::nn::{Gradients, Tape, Tensor};
use upgrayedd::pipeline::Pipeline;
use upgrayedd::reduce::Alone;
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::timings::time_layers;
use upgrayedd::units::{LayerSite, Selection, Site, Sites};
use upgrayedd::{OptimizeConfig, builtin, surgery};

fn with(change: impl FnOnce(&mut OptimizeConfig)) -> OptimizeConfig {
    let mut c = OptimizeConfig::default();
    c.run.num_cycles = 1;
    c.learn.max_steps_per_cycle = Some(1);
    c.measure.max_eval_windows = Some(2);
    c.learn.batch_size = 2;
    c.refit.refit_samples = 8;
    c.data.sequence_length = Some(16);
    c.grow.growth_ratio = 0.0;
    change(&mut c);
    c
}

/// The built-in model without attention in layer 0, without an MLP in layer 2 and without either in layer 3.
fn with_gaps() -> (Model, Model) {
    let parent = builtin::model().unwrap();
    let all = |place: LayerSite| (place, parent.units().layers()[place.layer].units(place.site));
    let gone = [LayerSite::heads(0), LayerSite::channels(2), LayerSite::heads(3), LayerSite::channels(3)];
    let mut model = parent.clone();
    surgery::remove(&mut model, None, &gone.map(all).into(), 1, None).unwrap();
    (parent, model)
}

/// How many attentions, MLPs and layers are left.
fn left(model: &Model) -> [usize; 3] {
    [Site::Attention, Site::Mlp, Site::Layer].map(|site| model.units().count(site))
}

#[test]
fn blocks_go_by_number_and_by_cost() {
    for (units, strategy, ratio, want) in [
        ("attention", "auto", 0.5, [2, 4, 4]),
        ("mlp", "fisher", 0.5, [4, 2, 4]),
        ("layers", "loss_impact", 0.25, [3, 3, 3]),
        ("attention,mlp", "random", 0.25, [3, 3, 4]),
        ("layers", "surgeon", 0.5, [2, 2, 2]),
    ] {
        let model = result(with(|c| {
            c.prune.units = units.parse().unwrap();
            c.prune.strategy = strategy.to_owned();
            c.prune.pruning_ratio = ratio;
            c.prune.shape = if units == "layers" { Shape::Uniform } else { Shape::Free };
        }));
        let got = left(&model);
        // Of what goes on its own, a layer may lose both.
        assert_eq!(got[..2], want[..2], "{units} by {strategy}");
        assert!(got[2] <= want[2], "{units} by {strategy}");
        let heads: Vec<usize> = model.units().counts();
        assert!(heads.iter().all(|n| *n == 0 || *n == 8), "{heads:?}");
    }
    for (units, strategy) in
        [("layers", "auto"), ("layers,channels", "auto"), ("attention,mlp,heads", "fisher")]
    {
        let model = result(with(|c| {
            c.prune.units = units.parse().unwrap();
            c.prune.strategy = strategy.to_owned();
            c.prune.target = Some("parameters=0.7x".parse().unwrap());
        }));
        let (now, then) = (model.num_parameters() as f64, builtin::model().unwrap().num_parameters() as f64);
        assert!(now <= 0.7 * then && now > 0.4 * then, "{units}: {now} of {then}");
    }
}

#[test]
fn blocks_come_back_whole() {
    let model = result(with(|c| {
        c.prune.units = "attention,mlp".parse().unwrap();
        c.prune.pruning_ratio = 0.5;
        c.grow.growth_ratio = 0.5;
    }));
    let layers = model.units().layers();
    assert_eq!(left(&model)[..2], [3, 3]);
    assert!(
        layers
            .iter()
            .all(|l| [0, 8].contains(&l.count(Site::Head)) && [0, 352].contains(&l.count(Site::Channel)))
    );
    let model = result(with(|c| {
        c.prune.units = "layers".parse().unwrap();
        c.prune.target = Some("macs=0.6x".parse().unwrap());
        c.grow.growth_ratio = 0.3;
    }));
    assert!(left(&model)[2] < 4);
}

#[test]
fn every_score_is_defined_where_blocks_are_missing() {
    let (_, model) = with_gaps();
    let (data, range) = (data(&model, 20), 0..6);
    let context = |units| ScoreContext { units, samples: 6, ..ScoreContext::new(&model, &data, &range) };
    for score in score::ALL.iter().filter(|score| score.name != "task") {
        let scores = score.compute(&context(score.units)).unwrap();
        for (place, of_place) in scores.iter() {
            assert_eq!(
                of_place.len(),
                model.units().layers()[place.layer].count(place.site),
                "{}",
                score.name
            );
        }
    }
    let all = gains(&context(Sites::FINEST)).unwrap();
    assert_eq!(all.len(), 2 * 8 + 2 * 352);
    assert!(all.values().all(|gain| gain.is_finite()) && all.values().any(|gain| *gain > 0.0));
}

#[test]
fn an_ablated_block_costs_what_the_model_without_it_loses() {
    let parent = builtin::model().unwrap();
    let (data, range) = (data(&parent, 20), 0..6);
    let units: Sites = "attention,mlp,layers".parse().unwrap();
    let context = ScoreContext { units, samples: 6, ..ScoreContext::new(&parent, &data, &range) };
    let impacts = score::named("loss_impact").unwrap().compute(&context).unwrap();
    let loss = |model: &Model| {
        let batch = data.batch(&[0, 1, 2, 3, 4, 5], Pass::Fixed);
        let mut tape = Tape::inference(model.device(), model.params());
        let loss = model.loss(&mut tape, &batch, 1.0, &mut Hooks::default()).unwrap();
        loss.sum.read() / loss.count as f64
    };
    for (place, impact) in impacts.iter() {
        let of = |&site: &Site| {
            let leaf = LayerSite { layer: place.layer, site };
            (leaf, parent.units().layers()[place.layer].units(site))
        };
        let gone: Selection = place.site.leaves().iter().map(of).collect();
        let mut without = parent.clone();
        surgery::remove(&mut without, None, &gone, 0, None).unwrap();
        let want = loss(&without) - loss(&parent);
        assert!((impact[0] - want).abs() < 1e-5, "{place:?}: {} {want}", impact[0]);
    }
}

#[test]
fn what_is_left_learns_writes_and_is_repaired() {
    let (parent, mut model) = with_gaps();
    let data = data(&model, 60);
    let indices: Vec<usize> = (0..40).collect();
    let repairs = refit(&mut model, &parent, batches(&data, &indices, 4), &Alone).unwrap();
    for (writer, gone) in repairs.values().zip([[0, 3], [2, 3]]) {
        let done: Vec<usize> = (0..4).filter(|layer| writer[*layer].ridge.is_some()).collect();
        assert!(done.iter().all(|layer| !gone.contains(layer)) && !done.is_empty(), "{repairs:?}");
    }
    assert_eq!(model.attention_maps(&data.batch(&[0], Pass::Fixed)).unwrap()[0].shape()[1], 0);
    // Token by token with a cache, or all at once.
    let options =
        GenerateOptions { max_new_tokens: 5, temperature: 0.0, top_p: 1.0, seed: 0, end_tokens: Vec::new() };
    let mut tokens = vec![1, 2, 3];
    let found = model.generate(&tokens, &options, |_| true).unwrap().tokens;
    for token in found {
        let batch = Batch { tokens: tokens.clone().into(), batch: 1, len: tokens.len(), ..Batch::default() };
        let logits = model.last_logits(&batch, &mut Hooks::default()).unwrap();
        let best = (0..logits.cols()).max_by(|&a, &b| logits.data()[a].total_cmp(&logits.data()[b])).unwrap();
        assert_eq!(token as usize, best);
        tokens.push(token);
    }
    assert!(time_layers(&model, 1, 16).is_ok());
    let mut learner = Learner::new(model, 0.01);
    let before = learner
        .model
        .params()
        .ids()
        .map(|id| learner.model.params().get(id).to_host())
        .collect::<Vec<Tensor>>();
    let batch = data.batch(&[0, 1, 2, 3], Pass::Fixed);
    let mut grads = Gradients::for_params(learner.model.params());
    learner.step(&mut grads, &[batch], None, Update::at(1e-3), &Alone).unwrap();
    let changed = |name: &str| {
        let id = learner.model.params().find(name).unwrap();
        learner.model.params().get(id).to_host() != before[id.index()]
    };
    assert!(changed("layers.1.attn.q.weight") && changed("layers.1.mlp.up.weight"));
    // And restored it is what it was.
    let Learner { mut model, mut optim } = learner;
    let back = model.archive().selection();
    surgery::restore(&mut model, Some(&mut optim), &back, 1.0).unwrap();
    assert!(model.units().is_full());
    let id = model.params().find("layers.3.mlp.up.weight").unwrap();
    assert_eq!(model.params().get(id), parent.params().get(id));
}

#[test]
fn what_has_lost_blocks_can_be_optimised_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let config = with(|c| c.prune.units = "layers".parse().unwrap());
    Pipeline::new(config).unwrap().run(&first, &mut Silent).unwrap();
    for (units, shape) in [("heads", Shape::Free), ("channels", Shape::Uniform), ("all", Shape::Uniform)] {
        let model = result(with(|c| {
            c.run.model = Some(first.to_string_lossy().into_owned());
            c.prune.units = units.parse().unwrap();
            c.prune.shape = shape;
            c.data.data = vec![dir.path().join("text.txt")];
            std::fs::write(&c.data.data[0], builtin::stories(1, 200).collect::<Vec<_>>().join("\n")).unwrap();
        }));
        assert_eq!(left(&model)[2], 3, "{units}");
        assert!(model.units().num_active() < 24 || model.units().count(Site::Channel) < 3 * 352, "{units}");
    }
}

#[test]
fn what_does_not_go_with_blocks_is_refused() {
    let error =
        |change: &dyn Fn(&mut OptimizeConfig)| Pipeline::new(with(|c| change(c))).err().unwrap().to_string();
    let message = error(&|c| {
        c.prune.units = "attention,channels".parse().unwrap();
        c.prune.shape = Shape::Uniform;
    });
    assert!(message.contains("whole layers alone"), "{message}");
    let message = error(&|c| c.prune.units = "layers,channels".parse().unwrap());
    assert!(message.contains("no share of each can be told"), "{message}");
    let message = error(&|c| {
        c.prune.units = "mlp".parse().unwrap();
        c.prune.strategy = "similarity".to_owned();
    });
    assert!(message.contains("similarity prunes heads, not mlp"), "{message}");
}
