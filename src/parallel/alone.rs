//! One process.

use super::communicator::{Communicator, Tag};
use anyhow::{Result, bail};
use std::time::Duration;

/// A single process: there is nobody to send anything to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn send(&self, to: usize, _: Tag, _: &[u8]) -> Result<()> {
        bail!("there is no process {to}: this one is alone")
    }

    fn receive(&self, from: usize, _: Tag, _: &mut [u8]) -> Result<()> {
        bail!("there is no process {from}: this one is alone")
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        0
    }

    fn set_patience(&self, _: Option<Duration>) {}

    fn abort(&self, exit_code: u8) -> ! {
        std::process::exit(exit_code.into())
    }
}
