//! Processes that share the work of a run: sums by `upgrayedd._group.Group`.

use std::sync::Arc;

use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use upgrayedd::OptimizeConfig;
use upgrayedd::nn::interrupt;
use upgrayedd::pipeline::Given;
use upgrayedd::reduce::Reduce;
use upgrayedd_cli::Shared;

use crate::errors::{from_py, to_py};

/// This process among them.
#[derive(Debug)]
struct Group {
    group: Py<PyAny>,
    rank: usize,
    size: usize,
}

impl Group {
    fn add<T: Element + Copy>(&self, values: &mut [T]) -> upgrayedd::Result<()> {
        let add = |py: Python<'_>| {
            let array = PyArray1::from_slice(py, values);
            self.group.call_method1(py, "sum", (&array,))?;
            values.copy_from_slice(array.readonly().as_slice()?);
            Ok(())
        };
        Python::attach(add).map_err(failed)
    }
}

/// Where all were told to stop, one that has done so is no longer there for the others.
fn failed(error: PyErr) -> upgrayedd::Error {
    match interrupt::check() {
        Ok(()) => from_py(error),
        Err(stopped) => stopped.into(),
    }
}

impl Reduce for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f64]) -> upgrayedd::Result<()> {
        self.add(values)
    }

    fn sum_f32(&self, values: &mut [f32]) -> upgrayedd::Result<()> {
        self.add(values)
    }

    fn gather(&self, values: &mut Vec<f64>) -> upgrayedd::Result<()> {
        let gather = |py: Python<'_>| {
            let all = self.group.call_method1(py, "gather", (PyArray1::from_slice(py, values),))?;
            *values = all.bind(py).cast::<PyArray1<f64>>()?.readonly().as_slice()?.to_vec();
            Ok(())
        };
        Python::attach(gather).map_err(failed)
    }
}

fn reduce(group: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Reduce>> {
    let number = |name: &str| group.getattr(name)?.extract::<usize>();
    Ok(Arc::new(Group { rank: number("rank")?, size: number("size")?, group: group.clone().unbind() }))
}

/// What Python's group is to a pipeline: its processes, and where this one computes.
pub fn given(group: Option<&Bound<'_, PyAny>>, config: &OptimizeConfig) -> PyResult<Given> {
    let Some(group) = group else { return Ok(Given::default()) };
    let shared = shared(group)?;
    let device = Some(shared.device(config).map_err(to_py)?);
    Ok(Given { reduce: Some(shared.reduce), device, ..Given::default() })
}

/// What it is to the command line.
pub fn shared(group: &Bound<'_, PyAny>) -> PyResult<Shared> {
    Ok(Shared {
        reduce: reduce(group)?,
        local_rank: group.getattr("local_rank")?.extract()?,
        local_size: group.getattr("local_size")?.extract()?,
        launch: group.getattr("launch")?.extract()?,
        restarted: group.getattr("restarted")?.extract()?,
    })
}
