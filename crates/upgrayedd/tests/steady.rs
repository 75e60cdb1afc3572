//! After the first step, learning asks the system for no buffer: they all come back from the pool. (Matrix
//! products pack one operand into memory of their own.)
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use upgrayedd::builtin;
use upgrayedd::learner::{Learner, Update};
use upgrayedd::model::Batch;
use upgrayedd::nn::{Gradients, profile};
use upgrayedd::reduce::Alone;

#[test]
fn steps_make_no_buffers_after_the_first() {
    // One thread, so that the order in which buffers are taken and given back is always the same.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let model = builtin::model().unwrap();
        let mut grads = Gradients::for_params(model.params());
        let tokens: Vec<u32> = (0..4 * 128).map(|i| i * 7 % model.spec().vocab_size as u32).collect();
        let targets = tokens.iter().map(|&t| i64::from(t)).collect();
        let batch = Batch { tokens: Arc::new(tokens), batch: 4, len: 128, targets, ..Batch::default() };
        let mut learner = Learner::new(model, 0.01);
        for gradient_checkpointing in [false, true] {
            let update = Update { gradient_checkpointing, ..Update::at(1e-3) };
            let mut step = || {
                let before = profile::fresh_buffers();
                learner.step(&mut grads, std::slice::from_ref(&batch), None, update, &Alone).unwrap();
                profile::fresh_buffers() - before
            };
            let counts = [step(), step(), step(), step()];
            assert_eq!(counts[1..], [0; 3], "{counts:?}");
            assert!(counts[0] > 20 || gradient_checkpointing, "{counts:?}");
        }
    });
}
