//! The end of a run: its result, measured and written.

use super::card::card;
use super::samples::samples;
use super::state::{Pipeline, Run};
use crate::Result;
use crate::eval::measure_speed;
use crate::event::{Event, Phase, Progress};
use crate::export;
use crate::files::DType;
use crate::model::Model;
use crate::open::base_of;
use crate::record::{Snapshot, Speed, Summary};
use crate::reduce::{in_all, of_first};
use crate::report;
use crate::units::Site;
use crate::weights::Layout;

impl Run<'_> {
    /// Rounds the weights to their stored type, measures that, compares it with the model as given, and
    /// writes it all.
    pub(super) fn finish(mut self) -> Result<Summary> {
        let control = self.control()?;
        let (config, length) = (self.pipeline.plan.config.clone(), self.pipeline.plan.sequence_length);
        if let Some(dtype) = config.run.dtype {
            self.pipeline.learner.model.set_dtype(dtype);
        }
        round_weights(&mut self.pipeline.learner.model)?;
        if let Some(message) = self.pipeline.above_target()? {
            self.journal.emit(Event::Notice { cycle: self.journal.state.cycle, message })?;
        }
        self.pipeline.learner.optim.states.clear();
        let evaluation = self.pipeline.measure("result", self.journal.observer)?;
        self.journal.emit(Event::Evaluated {
            cycle: self.journal.state.cycle,
            phase: Phase::Result,
            evaluation: evaluation.clone(),
        })?;
        self.journal.observer.on_progress(Progress { task: "measure speed", done: 0, total: 1 });
        let mut dense = base_of(&self.journal.dir.base(), &config, self.pipeline.record.given)?;
        dense.move_to(self.pipeline.learner.model.device());
        if let Some(spill) = self.pipeline.learner.model.spill() {
            dense.set_spill(spill.clone())?;
        }
        let model = &self.pipeline.learner.model;
        let speeds = self.speeds(&dense, length)?;
        self.journal.observer.on_progress(Progress { task: "measure speed", done: 1, total: 1 });
        let samples = samples(&config.measure, &self.pipeline.data.held_out, &dense, model)?;
        let snapshot = |model: &Model, evaluation, speed| Snapshot {
            evaluation,
            cost: model.cost(length),
            speed,
            heads: model.units().layers().iter().map(|l| l.active().to_vec()).collect(),
            channels: model.units().layers().iter().map(|l| l.count(Site::Channel)).collect(),
        };
        let summary = Summary {
            before: snapshot(&dense, self.journal.state.baseline.clone(), speeds[0]),
            after: snapshot(model, evaluation, speeds[1]),
            heads_per_layer: model.spec().layers.iter().map(|layer| layer.num_heads).collect(),
            channels_per_layer: model.spec().layers.iter().map(|layer| layer.intermediate_size).collect(),
            cycles: self.journal.state.history.clone(),
            control_tokens_learned: control.as_ref().map(|control| control.tokens_learned),
            control: control.map(|control| control.after),
            samples,
            gpu: self.pipeline.record.gpu.clone(),
            tokens_learned: self.journal.state.tokens,
            loads: (export::HF.note)(model),
            run: self.journal.dir.path().to_owned(),
        };
        let (active, parameters) = (model.units().num_active(), model.num_parameters());
        // Written before the result, which makes the run complete, and told after it.
        let finished = Event::RunFinished { active, channels: self.pipeline.channels(), parameters };
        self.journal.dir.write_event(&finished)?;
        let card = card(&self.pipeline.record, model, &summary);
        let run = self.journal.dir.path().to_owned();
        let written = self
            .journal
            .dir
            .finish(model, &summary, |out| export::export_all(model, &[&export::HF], None, out, Some(&card)));
        in_all(self.pipeline.reduce.as_ref(), written)?;
        // The result is whole: that it cannot be shown is no reason to lose it.
        if self.pipeline.reduce.rank() == 0
            && let Err(error) = report::write(&run)
        {
            let message = format!("the page about the run could not be written: {error}");
            self.journal.observer.on_event(&Event::Notice { cycle: self.journal.state.cycle, message });
        }
        self.journal.observer.on_event(&finished);
        Ok(summary)
    }

    /// Of the model as given and of the result, as the first process finds them while the others wait.
    fn speeds(&self, dense: &Model, length: usize) -> Result<[Speed; 2]> {
        let Pipeline { reduce, plan, learner, .. } = &self.pipeline;
        of_first(reduce.as_ref(), || {
            let speeds = measure_speed(&[dense, &learner.model], plan.config.learn.batch_size, length)?;
            Ok([speeds[0], speeds[1]])
        })
    }
}

/// Gives every weight numbers that its type in files has.
fn round_weights(model: &mut Model) -> Result<()> {
    for id in model.params().ids() {
        let dtype = model.dtype_of(id);
        if dtype == DType::F32 || model.params().get(id).format() == Some(dtype.format()) {
            continue;
        }
        let device = model.device();
        model.params_mut().edit(device, id, |t| t.data_mut().iter_mut().for_each(|v| *v = dtype.round(*v)));
        // As the result will be when it is loaded, so that its speed is that of what is stored.
        let weight = model.weight(id);
        if weight.layout == Layout::Plain
            && weight.axes.len() == 2
            && let Some(stored) = dtype.store(model.params().get(id))
        {
            model.params_mut().set(id, device.upload(stored));
        }
        model.put_away(&[id])?;
    }
    Ok(())
}
