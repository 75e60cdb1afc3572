//! Heads and channels in one run: budgets are kept, what goes is the least important per price, and what comes
//! back does too.
#![allow(missing_docs, clippy::unwrap_used)]

mod small;

use small::{data, result};
use upgrayedd::budget::Shape;
use upgrayedd::pipeline::Pipeline;
use upgrayedd::reduce::Alone;
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::units::{LayerSite, Selection, Site, Sites};
use upgrayedd::weights::Writer;
use upgrayedd::{Error, Model, OptimizeConfig, builtin, surgery};

fn with(change: impl FnOnce(&mut OptimizeConfig)) -> OptimizeConfig {
    let mut c = OptimizeConfig::default();
    c.prune.strategy = "fisher".to_owned();
    c.run.num_cycles = 2;
    c.learn.max_steps_per_cycle = Some(1);
    c.measure.max_eval_windows = Some(2);
    c.learn.batch_size = 2;
    c.refit.refit_samples = 8;
    c.data.sequence_length = Some(16);
    change(&mut c);
    c
}

#[test]
fn a_target_is_reached_and_not_passed_by_more_than_a_unit() {
    let dense = builtin::model().unwrap();
    for (name, strategy, units) in [
        ("parameters=0.7x", "fisher", "all"),
        ("parameters=700K", "auto", "all"),
        ("macs=0.8x", "random", "all"),
        ("bytes=0.75x", "magnitude", "all"),
        ("kv-cache=0.75x", "wanda", "all"),
        ("parameters=0.9x", "taylor", "kv-groups,channels"),
        ("macs=0.75x", "surgeon", "channels"),
    ] {
        let model = result(with(|c| {
            c.prune.target = Some(name.parse().unwrap());
            c.prune.strategy = strategy.to_owned();
            c.prune.units = units.parse().unwrap();
        }));
        let amounts = |model: &Model| {
            let cost = model.cost(16);
            match name.split_once('=').unwrap().0 {
                "parameters" => cost.parameters as f64,
                "macs" => cost.macs_per_token as f64,
                "bytes" => cost.bytes as f64,
                _ => cost.kv_cache_bytes_per_token as f64,
            }
        };
        let target: upgrayedd::config::Target = name.parse().unwrap();
        let goal = target.amount_of(amounts(&dense));
        let got = amounts(&model);
        // A head with its keys and values is the dearest unit that there is; of the KV cache, all of a group.
        let dearest = (amounts(&dense) / 16.0).max(amounts(&dense) * 0.02);
        assert!(got <= goal && got > goal - dearest, "{name} by {strategy} of {units}: {got} of {goal}");
        let sites: Sites = units.parse().unwrap();
        // Channels have no keys and values, so none of them goes for these.
        let may = |site: Site| {
            sites.leaves().contains(site) && (site == Site::Head || !name.starts_with("kv-cache"))
        };
        for site in Sites::FINEST.iter().filter(|site| !may(*site)) {
            assert_eq!(model.units().count(site), dense.units().count(site), "{name}");
        }
    }
}

#[test]
fn counted_in_units_each_kind_gives_its_share() {
    let model = result(with(|c| {
        c.prune.units = Sites::FINEST;
        c.prune.pruning_ratio = 0.25;
        c.grow.growth_ratio = 0.0;
        c.run.num_cycles = 1;
    }));
    // A quarter of 32 heads and of 4 · 352 channels.
    assert_eq!((model.units().num_active(), model.units().count(Site::Channel)), (24, 1056));
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let error = |config| Pipeline::new(config).err().unwrap().to_string();
    for (change, word) in [
        (
            &(|c: &mut OptimizeConfig| c.prune.strategy = "entropy".to_owned())
                as &dyn Fn(&mut OptimizeConfig),
            "strategy entropy prunes heads, not channels",
        ),
        (
            &|c| c.prune.target = Some("parameters=10K".parse().unwrap()),
            "asks for more than its heads,channels are",
        ),
        (&|c| c.prune.target = Some("parameters=2G".parse().unwrap()), "is more than the"),
    ] {
        let message = error(with(|c| {
            c.prune.units = Sites::FINEST;
            change(c);
        }));
        assert!(message.contains(word), "{message}");
    }
    let model = builtin::model().unwrap();
    let data = data(&model, 4);
    let range = 0..2;
    let context = ScoreContext { units: Sites::FINEST, ..ScoreContext::new(&model, &data, &range) };
    for name in ["entropy", "similarity", "loss_impact"] {
        let error = score::named(name).unwrap().compute(&context).unwrap_err();
        assert!(matches!(error, Error::DoesNotFit(_)), "{error:?}");
    }
}

#[test]
fn what_another_channel_can_say_is_not_lost() {
    let mut parent = builtin::model().unwrap();
    // Channel 7 does what channel 3 does, at half the strength.
    for part in ["gate", "up"] {
        let id = parent.params().find(&format!("layers.1.mlp.{part}.weight")).unwrap();
        let weight = parent.params_mut().get_mut(id);
        let width = weight.cols();
        weight.data_mut().copy_within(3 * width..4 * width, 7 * width);
    }
    let data = data(&parent, 60);
    let mut pruned = parent.clone();
    surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::channels(1), vec![7])]), 0, None)
        .unwrap();
    let indices: Vec<usize> = (0..40).collect();
    let repairs = refit(&mut pruned, &parent, batches(&data, &indices, 4), &Alone).unwrap();
    assert_eq!(repairs.keys().copied().collect::<Vec<_>>(), [Writer::Mlp]);
    assert!(repairs[&Writer::Mlp][1].repaired > 0.98, "{repairs:?}");
    for id in pruned.params().ids() {
        let name = pruned.params().name(id);
        let same = pruned.params().get(id) == parent.params().get(id);
        assert!(same || name.contains(".mlp."), "{name}");
    }
}

#[test]
fn what_nothing_stands_in_for_goes_last() {
    // Of channels that say the same, the surgeon takes one and keeps the other.
    let mut model = builtin::model().unwrap();
    for part in ["gate", "up"] {
        let id = model.params().find(&format!("layers.0.mlp.{part}.weight")).unwrap();
        let weight = model.params_mut().get_mut(id);
        let width = weight.cols();
        weight.data_mut().copy_within(10 * width..11 * width, 20 * width);
    }
    let data = data(&model, 60);
    let range = 0..40;
    let context = ScoreContext {
        units: Sites::of(Site::Channel),
        samples: 40,
        ..ScoreContext::new(&model, &data, &range)
    };
    let scores = score::named("surgeon").unwrap().compute(&context).unwrap();
    let layer = scores.at(LayerSite::channels(0));
    let mean = layer.iter().sum::<f64>() / layer.len() as f64;
    assert!(layer[10].min(layer[20]) < 0.05 * mean, "{} {} of {mean}", layer[10], layer[20]);
}

#[test]
fn uniform_layers_are_alike_within_the_target() {
    for (units, target) in [("all", "parameters=0.7x"), ("channels", "macs=0.8x"), ("heads", "kv-cache=0.6x")]
    {
        let model = result(with(|c| {
            c.prune.units = units.parse().unwrap();
            c.prune.target = Some(target.parse().unwrap());
            c.prune.shape = Shape::Uniform;
            c.grow.growth_ratio = 0.0;
        }));
        let widths: Vec<_> = model
            .units()
            .layers()
            .iter()
            .map(|l| (l.count(Site::Head), l.count(Site::KvGroup), l.count(Site::Channel)))
            .collect();
        assert!(widths.windows(2).all(|w| w[0] == w[1]) && !model.units().is_full(), "{units}: {widths:?}");
        assert!(widths[0].2 == 352 || widths[0].2 % 8 == 0, "{widths:?}");
        let dense = builtin::model().unwrap();
        let (now, then) = (model.cost(16), dense.cost(16));
        match target {
            "parameters=0.7x" => assert!(now.parameters as f64 <= 0.7 * then.parameters as f64),
            "macs=0.8x" => assert!(now.macs_per_token as f64 <= 0.8 * then.macs_per_token as f64),
            _ => assert!(model.units().num_active() * 10 <= 32 * 6),
        }
    }
    let grows = with(|c| c.prune.shape = Shape::Uniform);
    let message = Pipeline::new(grows).err().unwrap().to_string();
    assert!(message.contains("set growth_ratio to 0"), "{message}");
}
