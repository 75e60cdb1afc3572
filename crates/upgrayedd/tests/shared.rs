//! Work that two processes share, each with a part of the data, comes to what one alone finds.
#![allow(missing_docs, clippy::unwrap_used)]

use std::ops::Range;
use std::path::Path;
use std::sync::{Barrier, Mutex};

use upgrayedd::data::{Dataset, Pass, Row};
use upgrayedd::eval::{EvalOptions, evaluate};
use upgrayedd::event::Silent;
use upgrayedd::learner::{Learner, Update};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::nn::{Gradients, ParamId, Tensor};
use upgrayedd::record::Evaluation;
use upgrayedd::reduce::{Alone, Reduce};
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext, compute_all};
use upgrayedd::units::{LayerSite, Scores, Selection};
use upgrayedd::{Result, surgery};

/// Two threads that meet to add.
#[derive(Debug)]
struct Meeting {
    both: Barrier,
    sums: Mutex<[Vec<f64>; 2]>,
}

/// One of the two.
#[derive(Debug)]
struct Half<'a> {
    meeting: &'a Meeting,
    rank: usize,
}

impl Half<'_> {
    /// What both have brought.
    fn exchange(&self, mine: &[f64]) -> [Vec<f64>; 2] {
        self.meeting.sums.lock().unwrap()[self.rank] = mine.to_vec();
        self.meeting.both.wait();
        let both = self.meeting.sums.lock().unwrap().clone();
        self.meeting.both.wait();
        both
    }
}

impl Reduce for Half<'_> {
    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let [first, second] = self.exchange(values);
        assert_eq!(first.len(), second.len());
        values.iter_mut().zip(first.iter().zip(second)).for_each(|(sum, (a, b))| *sum = a + b);
        Ok(())
    }

    fn sum_tensor(&self, tensor: &mut Tensor) -> Result<()> {
        let mut values: Vec<f64> = tensor.data().iter().copied().map(f64::from).collect();
        self.sum(&mut values)?;
        tensor.data_mut().iter_mut().zip(values).for_each(|(to, value)| *to = value as f32);
        Ok(())
    }

    fn gather(&self, values: &mut Vec<f64>) -> Result<()> {
        *values = self.exchange(values).concat();
        Ok(())
    }
}

/// What each half finds of `work` on its share of six sequences, and what one alone finds on all.
fn shared<T: Send>(work: impl Fn(&dyn Reduce, Range<usize>) -> T + Sync) -> [T; 3] {
    let meeting = Meeting { both: Barrier::new(2), sums: Mutex::default() };
    let half = |rank: usize, range: Range<usize>| work(&Half { meeting: &meeting, rank }, range);
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| half(1, 4..6));
        (half(0, 0..4), second.join().unwrap())
    });
    [first, second, work(&Alone, 0..6)]
}

fn model(name: &str) -> Model {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    Model::load(&golden, &LoadOptions::default()).unwrap()
}

fn data(model: &Model) -> Dataset {
    let row = |i: u32| Row::causal((0..9).map(|t| (i * 37 + t * t * 11) % 40).collect(), None, None);
    Dataset::from_rows((0..6).map(row).collect(), model.spec().objective, 0)
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-12f64, |most, v| most.max(v.abs()));
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * scale), "{a:?} is not {b:?}");
}

#[test]
fn a_step_is_that_of_all_the_batches() {
    for name in ["llama_gqa", "gpt2"] {
        let [first, second, alone] = shared(|reduce, range| {
            let mut learner = Learner::new(model(name), 0.0);
            let data = data(&learner.model);
            let batch = data.batch(&range.collect::<Vec<_>>(), Pass::Fixed);
            let mut grads = Gradients::for_params(learner.model.params());
            let step = learner.step(&mut grads, &[batch], None, Update::at(1e-3), reduce).unwrap();
            let params = &learner.model.params();
            let weights =
                |id: ParamId| params.get(id).data().iter().copied().map(f64::from).collect::<Vec<f64>>();
            (step, params.ids().map(weights).collect::<Vec<_>>())
        });
        assert!(first == second && first.0.targets == alone.0.targets);
        close(&[first.0.loss, first.0.norm], &[alone.0.loss, alone.0.norm], 1e-5);
        first.1.iter().zip(&alone.1).for_each(|(a, b)| close(a, b, 1e-3));
    }
}

#[test]
fn a_measurement_is_that_of_all_the_sequences() {
    let [first, second, alone]: [Evaluation; 3] = shared(|reduce, range| {
        let model = model("llama_gqa");
        let options = EvalOptions { batch_size: 2, max_windows: None, window: 9, reduce };
        evaluate(&model, &data(&model), &range, options, "measure", &mut Silent).unwrap()
    });
    assert!(first == second && (first.tokens, first.sequences) == (alone.tokens, alone.sequences));
    close(&[first.loss], &[alone.loss], 1e-6);
}

#[test]
fn scores_are_those_of_all_the_sequences() {
    let names = ["gradient", "fisher", "entropy", "wanda", "similarity", "surgeon"];
    let [first, second, alone]: [Vec<Scores>; 3] = shared(|reduce, range| {
        let model = model("llama_gqa");
        let data = data(&model);
        let context =
            ScoreContext { batch_size: 2, samples: 6, reduce, ..ScoreContext::new(&model, &data, &range) };
        let scores: Vec<_> = names.iter().map(|name| score::named(name).unwrap()).collect();
        let mut found = compute_all(&scores, &context).unwrap();
        found.push(score::named("loss_impact").unwrap().compute(&context).unwrap());
        found
    });
    for ((a, b), all) in first.iter().zip(&second).zip(&alone) {
        assert_eq!(a, b);
        close(&a.values().collect::<Vec<_>>(), &all.values().collect::<Vec<_>>(), 1e-3);
    }
}

#[test]
fn a_refit_sees_all_the_sequences() {
    let [first, second, alone] = shared(|reduce, range| {
        let parent = model("gpt2");
        let mut pruned = parent.clone();
        surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(0), vec![1])]), 0, None)
            .unwrap();
        let indices: Vec<usize> = range.collect();
        let layers = refit(&mut pruned, &parent, batches(&data(&parent), &indices, 1), reduce).unwrap();
        layers.values().flatten().map(|layer| layer.repaired).collect::<Vec<f64>>()
    });
    // Which sequences judge differs, but both halves know of all of them.
    assert!(first == second && first[0] > 0.0, "{first:?}");
    assert!(first.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 0.5), "{first:?} {alone:?}");
}
