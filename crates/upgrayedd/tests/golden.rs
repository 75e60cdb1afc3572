//! Every family against transformers: logits, loss, every gradient, ten AdamW steps; dense and pruned.
//! The files and the script that makes them are in `tests/golden`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use upgrayedd::files::TensorFile;
use upgrayedd::learner::{Learner, Update};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Batch, Distill, Hooks, Model};
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::nn::{Gradients, Tape, Tensor};
use upgrayedd::reduce::Alone;
use upgrayedd::spec::Objective;
use upgrayedd::surgery;
use upgrayedd::units::{Selection, heads_by_layer};

struct Case {
    name: String,
    dir: PathBuf,
    model: Model,
    batch: Batch,
    golden: TensorFile,
    pruned: Selection,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("golden.safetensors").is_file())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 34, "golden cases are missing");
    dirs.into_iter().map(load).collect()
}

fn load(dir: PathBuf) -> Case {
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    let golden = TensorFile::open(&dir.join("golden.safetensors")).unwrap();
    let pruned = heads_by_layer(serde_json::from_str(&golden.metadata()["pruned"]).unwrap());
    let mut model = Model::load(&dir, &LoadOptions::default()).unwrap();
    surgery::remove(&mut model, None, &pruned, 1, None).unwrap();
    let ids = golden.read("input_ids").unwrap();
    let (batch, len) = (ids.rows(), ids.cols());
    let mask: Vec<u8> = golden.read("attention_mask").unwrap().data().iter().map(|m| *m as u8).collect();
    let types =
        golden.read("token_type_ids").map(|t| Arc::new(t.data().iter().map(|t| *t as u32).collect())).ok();
    let labels: Vec<i64> =
        golden.read("labels").map(|l| l.data().iter().map(|v| *v as i64).collect()).unwrap_or_default();
    let targets = match model.spec().objective {
        Objective::Classifier { labels: 1 } | Objective::MultiLabel { .. } => vec![0; batch],
        Objective::CausalLm => {
            labels.chunks(len).flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect()
        }
        _ => labels,
    };
    let tokens = Arc::new(ids.data().iter().map(|t| *t as u32).collect());
    let mask = mask.contains(&0).then_some(mask);
    let values = golden.read("labels").map(|l| l.data().to_vec()).unwrap_or_default();
    let batch = Batch { tokens, batch, len, mask, types, targets, values };
    Case { name, dir, model, batch, golden, pruned }
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.to_host().data().iter().fold(0.0, |a, v| a.max(v.abs()))
}

/// To a share of the largest element, or of `least` if that is more; returns the largest share.
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32, least: f32) -> f32 {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let scale = largest(want).max(least);
    let mut worst = 0.0f32;
    for (i, (g, w)) in got.data().iter().zip(want.data()).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}: element {i} is {g}, transformers has {w}");
        worst = worst.max((g - w).abs() / scale);
    }
    worst
}

/// Notes how closely a case agrees, for `scripts/families-table`, which says where.
fn found(case: &Case, what: &str, difference: f64) {
    let Some(folder) = std::env::var_os("UPGRAYEDD_FINDINGS") else { return };
    let path = Path::new(&folder).join(format!("{}.{what}", case.name));
    std::fs::write(path, difference.to_string()).unwrap();
}

#[test]
fn logits_agree_where_nothing_is_padding() {
    for case in cases() {
        let got = if case.model.spec().objective == Objective::Encoder {
            let mut tape = Tape::inference(case.model.device(), case.model.params());
            case.model.hidden(&mut tape, &case.batch, &mut Hooks::default()).unwrap().tensor().clone()
        } else {
            case.model.logits(&case.batch, &mut Hooks::default()).unwrap()
        };
        let want = case.golden.read("logits").unwrap().reshaped(got.shape());
        let per_sequence = got.rows() == case.batch.batch;
        let rows: Vec<usize> = (0..got.rows())
            .filter(|&r| per_sequence || case.batch.mask.as_ref().is_none_or(|m| m[r] == 1))
            .collect();
        let worst = assert_close(&case.name, &got.take_rows(&rows), &want.take_rows(&rows), 2e-5, 1e-3);
        found(&case, "logits", worst.into());
    }
}

#[test]
fn loss_and_every_gradient_agree() {
    for case in cases().into_iter().filter(|c| c.model.spec().objective != Objective::Encoder) {
        let model = &case.model;
        let mut grads = Gradients::for_params(model.params());
        let mut tape = Tape::recording(model.device(), model.params(), &mut grads);
        let loss = model
            .loss(&mut tape, &case.batch, 1.0 / case.batch.counted() as f32, &mut Hooks::default())
            .unwrap();
        tape.backward(loss.seeds).unwrap();
        let want = f64::from(case.golden.read("loss").unwrap().data()[0]);
        let difference = (loss.sum.read() / loss.count as f64 - want).abs() / want;
        assert!(difference < 1e-5, "{}: loss", case.name);
        found(&case, "loss", difference);
        // The gradients are stored as a model of their own; pruned like the model they belong to.
        let mut expected = Model::load(&case.dir.join("grad"), &LoadOptions::default()).unwrap();
        surgery::remove(&mut expected, None, &case.pruned, 1, None).unwrap();
        // What is zero but for rounding (a key's bias has no say) is rounded as everything else is.
        let least =
            model.params().ids().map(|id| 1e-3 * largest(expected.params().get(id))).fold(1e-3, f32::max);
        let mut worst = 0.0f32;
        for id in model.params().ids() {
            let name = model.params().name(id);
            let got = grads.get(id).unwrap_or_else(|| panic!("{}: {name} got no gradient", case.name));
            let (what, expected) = (format!("{}: {name}", case.name), expected.params().get(id).to_host());
            worst = worst.max(assert_close(&what, got, &expected, 1e-4, least));
        }
        found(&case, "gradients", worst.into());
    }
}

#[test]
fn a_teacher_of_numbers_is_as_good_as_labels_between_his_and_the_true_ones() {
    let case = cases().into_iter().find(|c| c.model.spec().objective.is_regression()).unwrap();
    let (model, mut teacher) = (&case.model, case.model.clone());
    let bias = teacher.params().find("head.bias").unwrap();
    teacher.params_mut().get_mut(bias).data_mut()[0] += 0.75;
    let learned = |batch: &Batch, distill: Option<&Distill<'_>>| {
        let mut grads = Gradients::for_params(model.params());
        let mut tape = Tape::recording(model.device(), model.params(), &mut grads);
        let loss = match distill {
            Some(distill) => model.distillation_loss(&mut tape, batch, 1.0, distill),
            None => model.loss(&mut tape, batch, 1.0, &mut Hooks::default()),
        };
        let loss = loss.unwrap();
        tape.backward(loss.seeds).unwrap();
        (loss.sum.read(), model.params().ids().map(|id| grads.get(id).unwrap().clone()).collect::<Vec<_>>())
    };
    let share = 0.25;
    let distill = Distill { teacher: &teacher, temperature: 1.0, share };
    let (mixed, got) = learned(&case.batch, Some(&distill));
    let his = teacher.logits(&case.batch, &mut Hooks::default()).unwrap();
    let between = case
        .batch
        .values
        .iter()
        .zip(his.data())
        .map(|(value, his)| (1.0 - share) * value + share * his)
        .collect();
    let (_, want) = learned(&Batch { values: between, ..case.batch.clone() }, None);
    for (got, want) in got.iter().zip(&want) {
        assert_close("gradient", got, want, 1e-4, 1e-2);
    }
    // The teacher is 0.75 off everywhere.
    let (plain, _) = learned(&case.batch, None);
    let expected = 0.75 * plain + 0.25 * case.batch.batch as f64 * 0.75 * 0.75;
    assert!((mixed - expected).abs() < 1e-4 * expected, "{mixed} is not {expected}");
}

#[test]
fn ten_adamw_steps_agree() {
    for case in cases().into_iter().filter(|c| c.model.spec().objective != Objective::Encoder) {
        let mut grads = Gradients::for_params(case.model.params());
        let mut learner = Learner::new(case.model.clone(), 0.1);
        let mut worst = 0.0f64;
        for want in case.golden.read("adamw_losses").unwrap().data() {
            let batch = std::slice::from_ref(&case.batch);
            let loss = learner.step(&mut grads, batch, None, Update::at(3e-3), &Alone).unwrap().loss;
            let difference = (loss - f64::from(*want)).abs() / f64::from(want.max(0.1));
            assert!(difference < 2e-4, "{}: loss {loss}, torch has {want}", case.name);
            worst = worst.max(difference);
        }
        found(&case, "adamw", worst);
    }
}
