//! What more threads would make of work whose tasks were timed on one: each takes the next task when it is free, and what is not
//! cut into tasks waits for nobody. Memory that all share, and the time to wake a thread, are left out.

use std::collections::BTreeMap;

use upgrayedd::nn::profile::Cut;

/// What a place of the code has cut, summed up: seconds.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: usize,
    tasks: usize,
    /// What is not cut, all that is, and what that takes on many threads.
    serial: f64,
    cut: f64,
    on_many: f64,
}

impl Sum {
    fn alone(&self) -> f64 {
        self.serial + self.cut
    }

    fn together(&self) -> f64 {
        self.serial + self.on_many
    }
}

/// By file and line.
fn sums(threads: usize, cuts: &[Cut], rest: f64) -> BTreeMap<String, Sum> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for cut in cuts {
        let file = cut.place.file().rsplit('/').next().unwrap_or_default();
        let sum = sums.entry(format!("{file}:{}", cut.place.line())).or_default();
        sum.count += 1;
        sum.tasks += cut.tasks.len();
        sum.serial += cut.serial;
        sum.cut += cut.tasks.iter().sum::<f64>();
        sum.on_many += cut.on(threads);
    }
    sums.insert("the end".to_owned(), Sum { count: 1, serial: rest, ..Sum::default() });
    sums
}

/// Prints a Markdown table for each number of threads: the places that take longest on so many first.
pub fn print(runs: &[(usize, Vec<Cut>, f64)]) {
    for (threads, cuts, rest) in runs {
        let sums = sums(*threads, cuts, *rest);
        let mut rows: Vec<_> = sums.iter().collect();
        rows.sort_by(|a, b| b.1.together().total_cmp(&a.1.together()));
        let total = |of: &dyn Fn(&Sum) -> f64| rows.iter().map(|(_, sum)| of(sum)).sum::<f64>();
        let (alone, together) = (total(&Sum::alone), total(&Sum::together));
        println!("| place | times | tasks each | ms on 1 | not cut | ms on {threads} | speed-up |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        println!(
            "| all | | | {:.0} | {:.1}% | {:.1} | {:.1} |",
            alone * 1e3,
            100.0 * total(&|sum| sum.serial) / alone,
            together * 1e3,
            alone / together
        );
        for (place, sum) in rows.iter().filter(|(_, sum)| sum.together() > 0.02 * together) {
            println!(
                "| {place} | {} | {:.0} | {:.1} | {:.0}% | {:.2} | {:.1} |",
                sum.count,
                sum.tasks as f64 / sum.count.max(1) as f64,
                sum.alone() * 1e3,
                100.0 * sum.serial / sum.alone(),
                sum.together() * 1e3,
                sum.alone() / sum.together()
            );
        }
        println!();
    }
}
