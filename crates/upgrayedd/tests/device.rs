//! On a device with memory of its own, and with weights in the type of their file, every family computes the
//! same bits.
#![allow(missing_docs, clippy::unwrap_used)]

use upgrayedd::export::{HF, export};
use upgrayedd::files::DType;
use upgrayedd::learner::{Learner, Step, Update};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Distill, GenerateOptions, Hooks, Model};
use upgrayedd::nn::device::fake::{self, Transfers};
use upgrayedd::nn::{Device, Gradients, Tape, Tensor};
use upgrayedd::reduce::Alone;
use upgrayedd::spec::Objective;
use upgrayedd::units::{LayerSite, Selection};

mod tiny;

use tiny::{batch, everything, load, moved, weights};

const MODELS: [&str; 15] = [
    "llama_gqa",
    "llama3_rope",
    "gpt2",
    "gpt2_pruned",
    "bert_mlm",
    "bert_mlm_pruned",
    "bert_classifier",
    "bert_regression",
    "bert_encoder",
    "qwen3_pruned",
    "gemma2_pruned",
    "gpt_neox",
    "phi3_pruned",
    "modernbert_classifier_pruned",
    "mpnet_mlm_pruned",
];

/// The model as a file of this type has it, and with the same numbers in `f32`.
fn stored(name: &str, dtype: DType) -> [Model; 2] {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let exported = load(name);
    export(&exported, &HF, Some(dtype), &out).unwrap();
    let mut model = Model::load(&out, &LoadOptions::default()).unwrap();
    let are_stored =
        model.params().ids().filter(|id| model.params().get(*id).format() == Some(dtype.format())).count();
    // All matrices, but those that lie otherwise in their file.
    let least = if name.starts_with("gpt2") {
        1
    } else if ["modernbert", "gpt_neox", "phi3"].iter().any(|fused| name.starts_with(fused)) {
        3
    } else {
        12
    };
    assert!(are_stored >= least, "{name}: {are_stored}");
    if let Some(reference) = exported.reference() {
        model.set_reference(reference.clone()).unwrap();
    }
    let mut wide = model.clone();
    wide.params_mut().widen();
    assert!(wide.params().ids().all(|id| wide.params().get(id).format().is_none()));
    [model, wide]
}

fn on_device(model: Model) -> Model {
    moved(model, Device::fake())
}

#[test]
fn every_family_learns_the_same_and_only_lists_go_up() {
    for name in MODELS {
        for gradient_checkpointing in [false, true] {
            let step = |model| two_steps(model, gradient_checkpointing);
            let (host, device) = (step(load(name)), step(on_device(load(name))));
            assert!((host.0, host.1) == (device.0, device.1) && host.3 == device.3, "{name}: other bits");
            let Transfers { tensors_up, tensors_down, reads, lists_up } = device.2;
            // The optimiser's numbers of all lanes, and what a regression is to predict.
            let expected = if name == "bert_regression" { 2 } else { 1 };
            assert_eq!((tensors_up, tensors_down, reads), (expected, 0, 1), "{name}: {:?}", device.2);
            assert!(lists_up > 0 && host.2 == Transfers::default());
        }
    }
}

#[test]
fn forward_passes_and_distillation_are_the_same() {
    for name in MODELS {
        assert_same_passes(name, [load(name), on_device(load(name))]);
    }
}

#[test]
fn weights_in_the_type_of_their_file_give_the_bits_of_the_same_numbers() {
    for name in MODELS {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            assert_same_passes(name, stored(name, dtype));
            let [narrow, wide] = stored(name, dtype).map(|model| two_steps(model, false));
            assert!(narrow == wide, "{name}: learning");
        }
    }
    for name in ["llama_gqa", "gpt2", "bert_mlm"] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            for learns in [false, true] {
                let [narrow, wide] = stored(name, dtype).map(|model| everything(model, learns));
                assert!(narrow == wide, "{name}");
            }
        }
    }
}

#[test]
fn surgery_leaves_stored_weights_in_their_type() {
    let [mut model, _] = stored("llama_gqa", DType::BF16);
    let count =
        |model: &Model| model.params().ids().filter(|id| model.params().get(*id).format().is_some()).count();
    let before = count(&model);
    let gone = Selection::from([(LayerSite::heads(0), vec![0, 1, 2]), (LayerSite::heads(1), vec![5])]);
    upgrayedd::surgery::remove(&mut model, None, &gone, 0, None).unwrap();
    upgrayedd::surgery::restore(&mut model, None, &gone, 1.0).unwrap();
    assert!(before > 0 && count(&model) == before);
}

/// Two optimiser steps, what crossed over in the second, and the weights after both.
fn two_steps(model: Model, gradient_checkpointing: bool) -> (Step, Step, Transfers, Vec<Tensor>) {
    let batch = batch(&model);
    let mut grads = Gradients::for_params(model.params());
    let mut learner = Learner::new(model, 0.1);
    let update = Update { gradient_checkpointing, ..Update::at(1e-2) };
    let mut step = || learner.step(&mut grads, std::slice::from_ref(&batch), None, update, &Alone).unwrap();
    // Tables of positions stay where they are.
    let first = step();
    fake::reset();
    let second = step();
    (first, second, fake::transfers(), weights(learner.model))
}

fn assert_same_passes(name: &str, [host, device]: [Model; 2]) {
    {
        let batch = batch(&host);
        if host.spec().objective != Objective::Encoder {
            let logits = |model: &Model| model.logits(&batch, &mut Hooks::default()).unwrap();
            assert!(logits(&host) == logits(&device), "{name}");
        }
        if host.spec().objective != Objective::CausalLm {
            return;
        }
        let learned = |model: &Model| {
            let mut grads = Gradients::for_params(model.params());
            let mut tape = Tape::recording(model.device(), model.params(), &mut grads);
            let distill = Distill { teacher: model, temperature: 2.0, share: 0.5 };
            let loss = model.distillation_loss(&mut tape, &batch, 1.0, &distill).unwrap();
            tape.backward(loss.seeds).unwrap();
            (
                loss.sum.read(),
                model.params().ids().map(|id| grads.get(id).unwrap().to_host()).collect::<Vec<_>>(),
            )
        };
        assert!(learned(&host) == learned(&device), "{name}");
        let options = GenerateOptions {
            max_new_tokens: 5,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            end_tokens: Vec::new(),
        };
        let generated = |model: &Model| model.generate(&[1, 2, 3], &options, |_| true).unwrap().tokens;
        assert_eq!(generated(&host), generated(&device), "{name}");
        let maps = |model: &Model| model.attention_maps(&batch).unwrap();
        assert!(maps(&host) == maps(&device), "{name}");
    }
}

#[test]
fn surgery_scores_and_refit_are_the_same() {
    for name in ["llama_gqa", "gpt2", "bert_mlm"] {
        assert!(everything(load(name), true) == everything(on_device(load(name)), true), "{name}");
    }
}
