//! A failure of one process that becomes that of all.

use super::communicator::Communicator;
use crate::error::{Failure, exit_code};
use anyhow::{Result, anyhow};
use std::fmt;

/// Which process an error comes from. An error with this in its chain is known to all processes;
/// one without may be known to this one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfRank(pub usize);

impl fmt::Display for OfRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// The result where all processes succeeded; else, on all of them, the error of the lowest rank
/// that failed. One process keeps its result as it is.
///
/// # Errors
/// As said, or if the connection fails.
pub fn agree<T>(communicator: &dyn Communicator, own: Result<T>) -> Result<T> {
    if !communicator.is_shared() {
        return own;
    }
    let told = match &own {
        Ok(_) => Vec::new(),
        Err(error) => {
            let code = exit_code(error);
            [&[code], format!("{error:#}").as_bytes()].concat()
        }
    };
    let all = communicator.gather(&told)?;
    let failed = all.iter().enumerate().find_map(|(rank, told)| {
        let (code, message) = told.split_first()?;
        Some((rank, *code, String::from_utf8_lossy(message).into_owned()))
    });
    let Some((rank, code, message)) = failed else { return own };
    if rank == communicator.rank() {
        return own.map_err(|error| error.context(OfRank(rank)));
    }
    let error = match code {
        2 => Failure::Usage(message).into(),
        3 => Failure::Diverged(message).into(),
        _ => anyhow!(message),
    };
    Err(error.context(OfRank(rank)))
}

#[cfg(test)]
mod tests {
    use super::super::Channels;
    use super::*;
    use anyhow::bail;

    #[test]
    fn the_failure_of_one_is_that_of_all() {
        let results = Channels::run(3, |communicator| {
            let rank = communicator.rank();
            assert_eq!(agree(communicator, Ok(rank)).unwrap(), rank);
            let own = || -> Result<()> {
                if rank == 1 {
                    return Err(Failure::Usage("no such file".into()).into());
                }
                if rank == 2 {
                    bail!("later");
                }
                Ok(())
            };
            let error = agree(communicator, own()).unwrap_err();
            (format!("{error:#}"), exit_code(&error), error.downcast_ref().copied())
        });
        for result in results {
            assert_eq!(result, ("rank 1: no such file".into(), 2, Some(OfRank(1))));
        }
    }
}
