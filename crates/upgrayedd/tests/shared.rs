//! Work that two processes share comes to what one alone finds.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use upgrayedd::data::{Dataset, Pass, Row};
use upgrayedd::eval::{EvalOptions, evaluate};
use upgrayedd::event::Silent;
use upgrayedd::learner::{Learner, Update};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::nn::{Gradients, ParamId};
use upgrayedd::pipeline::Given;
use upgrayedd::record::Evaluation;
use upgrayedd::reduce::{Alone, Reduce};
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext, compute_all};
use upgrayedd::units::{LayerSite, Scores, Selection};
use upgrayedd::{OptimizeConfig, Pipeline, Result, Summary, builtin, surgery};

/// Two threads that meet to add.
#[derive(Debug)]
struct Meeting {
    both: Barrier,
    sums: Mutex<[Vec<f64>; 2]>,
}

/// One of the two.
#[derive(Debug)]
struct Half {
    meeting: Arc<Meeting>,
    rank: usize,
}

impl Half {
    /// What both have brought.
    fn exchange(&self, mine: &[f64]) -> [Vec<f64>; 2] {
        self.meeting.sums.lock().unwrap()[self.rank] = mine.to_vec();
        self.meeting.both.wait();
        let both = self.meeting.sums.lock().unwrap().clone();
        self.meeting.both.wait();
        both
    }
}

impl Reduce for Half {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        2
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let [first, second] = self.exchange(values);
        assert_eq!(first.len(), second.len());
        values.iter_mut().zip(first.iter().zip(second)).for_each(|(sum, (a, b))| *sum = a + b);
        Ok(())
    }

    fn sum_f32(&self, to: &mut [f32]) -> Result<()> {
        let mut values: Vec<f64> = to.iter().copied().map(f64::from).collect();
        self.sum(&mut values)?;
        to.iter_mut().zip(values).for_each(|(to, value)| *to = value as f32);
        Ok(())
    }

    fn gather(&self, values: &mut Vec<f64>) -> Result<()> {
        *values = self.exchange(values).concat();
        Ok(())
    }
}

/// What each half finds of `work`, and what one alone does.
fn shared<T: Send>(work: impl Fn(Arc<dyn Reduce>) -> T + Sync) -> [T; 3] {
    let meeting = Arc::new(Meeting { both: Barrier::new(2), sums: Mutex::default() });
    let half = |rank: usize| work(Arc::new(Half { meeting: meeting.clone(), rank }));
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| half(1));
        (half(0), second.join().unwrap())
    });
    [first, second, work(Arc::new(Alone))]
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
        let [first, second, alone] = shared(|reduce| {
            let mut learner = Learner::new(model(name), 0.0);
            let data = data(&learner.model);
            let batch = data.batch(&[0, 1, 2, 3, 4, 5], Pass::Fixed).rows(own(reduce.as_ref()));
            let mut grads = Gradients::for_params(learner.model.params());
            let step = learner.step(&mut grads, &[batch], None, Update::at(1e-3), reduce.as_ref()).unwrap();
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
    let [first, second, alone]: [Evaluation; 3] = shared(|reduce| {
        let model = model("llama_gqa");
        let options = EvalOptions { batch_size: 2, max_windows: None, window: 9, reduce: reduce.as_ref() };
        evaluate(&model, &data(&model), &(0..6), options, "measure", &mut Silent).unwrap()
    });
    assert!(first == second && (first.tokens, first.sequences) == (alone.tokens, alone.sequences));
    close(&[first.loss], &[alone.loss], 1e-6);
}

#[test]
fn scores_are_those_of_all_the_sequences() {
    let names = ["gradient", "fisher", "entropy", "wanda", "similarity", "surgeon"];
    let [first, second, alone]: [Vec<Scores>; 3] = shared(|reduce| {
        let model = model("llama_gqa");
        let data = data(&model);
        let (reduce, range) = (reduce.as_ref(), 0..6);
        let context = ScoreContext { batch_size: 2, reduce, ..ScoreContext::new(&model, &data, &range) };
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
    let [first, second, alone] = shared(|reduce| {
        let parent = model("gpt2");
        let mut pruned = parent.clone();
        surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(0), vec![1])]), 0, None)
            .unwrap();
        let batches = batches(&data(&parent), &[0, 1, 2, 3, 4, 5], 1);
        let layers = refit(&mut pruned, &parent, batches, reduce.as_ref()).unwrap();
        layers.values().flatten().map(|layer| layer.repaired).collect::<Vec<f64>>()
    });
    assert!(first == second && first[0] > 0.0, "{first:?}");
    close(&first, &alone, 1e-4);
}

/// The rows of a batch of six that a half learns from.
fn own(reduce: &dyn Reduce) -> std::ops::Range<usize> {
    if reduce.size() == 1 { 0..6 } else { 3 * reduce.rank()..3 * reduce.rank() + 3 }
}

#[test]
fn a_run_is_that_of_all_the_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, builtin::stories(3, 60).collect::<Vec<_>>().join("\n\n")).unwrap();
    let [first, second, alone] = shared(|reduce| {
        let config = OptimizeConfig::from_toml(&format!(
            "model = \"builtin\"\ndata = [{text:?}]\nsequence_length = 32\nbatch_size = 3\nnum_cycles = 2\nmax_steps_per_cycle = 4\n\
             strategy = \"fisher\"\nunits = \"all\"\nbudget = \"parameters\"\npruning_ratio = 0.1\neval_every = 2\n\
             max_loss_increase = 1.0\nmax_eval_windows = 7\nrefit_samples = 20\n",
        ));
        let out = folder.path().join(if reduce.size() == 1 { "alone" } else { "shared" });
        let given = Given { reduce: Some(reduce), ..Given::default() };
        Pipeline::with(config.unwrap(), given).unwrap().run(&out, &mut Silent).unwrap()
    });
    assert_eq!(first, second);
    assert_eq!((&first.after.heads, &first.after.channels), (&alone.after.heads, &alone.after.channels));
    let losses = |summary: &Summary| [summary.before.evaluation.loss, summary.after.evaluation.loss];
    close(&losses(&first), &losses(&alone), 1e-5);
    // One of them has written all that there is.
    assert!(folder.path().join("shared/report.html").is_file());
    let lines = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name).join("events.jsonl")).unwrap();
        text.lines().count()
    };
    assert_eq!(lines("shared"), lines("alone"));
}

#[test]
fn who_was_given_something_else_is_refused() {
    let [first, second, _] = shared(|reduce| {
        let seed = 7 + reduce.rank();
        let config = OptimizeConfig::from_toml(&format!("seed = {seed}")).unwrap();
        let given = Given { reduce: Some(reduce), ..Given::default() };
        Pipeline::with(config, given).err().map(|error| error.to_string())
    });
    let message = first.unwrap();
    assert!(message.starts_with("process 1 does not do what process 0 does"), "{message}");
    assert_eq!(second.unwrap(), message);
}
