//! Completions and manual pages, from the definition of the arguments.

use std::io::ErrorKind;

use anyhow::Result;
use clap::CommandFactory;
use upgrayedd::Error;

use crate::args::{Cli, CompletionsArgs, ManArgs};

pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "upgrayedd", &mut script);
    print(&script)
}

pub fn man(args: &ManArgs) -> Result<()> {
    let cli = Cli::command().disable_help_subcommand(true);
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
        return Ok(clap_mangen::generate_to(cli, out).map_err(Error::io(out, "write in"))?);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(cli).render(&mut page)?;
    print(&page)
}

/// As it is, without colours.
fn print(bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
