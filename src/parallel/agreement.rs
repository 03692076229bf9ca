//! A failure of one process that becomes that of all.

use super::communicator::Communicator;
use crate::error::{Failure, exit_code};
use anyhow::{Result, anyhow};
use std::fmt;

/// Which process an error comes from. An error with this in its chain is known to all processes;
/// one without may be known to this one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfRank(pub usize);

/// An error of this process alone that the others cannot be told of, since they wait for something
/// else meanwhile: it ends all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfThisProcess(pub String);

impl fmt::Display for OfThisProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OfThisProcess {}

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
    let told = own.as_ref().map_or_else(told, |_| Vec::new());
    let all = communicator.gather(&told)?;
    let Some((rank, error)) = first_failure(&all) else { return own };
    if rank == communicator.rank() {
        return own.map_err(|error| error.context(OfRank(rank)));
    }
    Err(error.context(OfRank(rank)))
}

/// What all processes have to say, in the order of their ranks; else, on all of them alike, the
/// error of the lowest rank that failed, which stays a divergence, or one of the tensor library, if
/// it was that.
///
/// # Errors
/// As said, or if the connection fails.
pub fn gather_if_all_succeed(
    communicator: &dyn Communicator,
    own: Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let said = match own {
        Ok(said) => [&[0], said.as_slice()].concat(),
        Err(error) if error.chain().any(|cause| cause.is::<OfThisProcess>()) => return Err(error),
        Err(error) => told(&error),
    };
    let all = communicator.gather(&said)?;
    if let Some((_, error)) = first_failure(&all) {
        return Err(error);
    }
    Ok(all.into_iter().map(|said| said.get(1..).unwrap_or_default().to_vec()).collect())
}

/// Stands among exit codes for an error of the tensor library.
const OF_TENSORS: u8 = 255;

/// An error as others are told of it: its exit code and its text.
fn told(error: &anyhow::Error) -> Vec<u8> {
    let of_tensors = error.chain().any(|cause| cause.is::<candle_core::Error>());
    let code = match exit_code(error) {
        1 if of_tensors => OF_TENSORS,
        code => code,
    };
    [&[code], format!("{error:#}").as_bytes()].concat()
}

/// The first failure of which processes told, and the rank of its process.
fn first_failure(all: &[Vec<u8>]) -> Option<(usize, anyhow::Error)> {
    all.iter().enumerate().find_map(|(rank, told)| {
        let (code, message) = told.split_first().filter(|(code, _)| **code != 0)?;
        let message = String::from_utf8_lossy(message).into_owned();
        let error = match *code {
            2 => Failure::Usage(message).into(),
            3 => Failure::Diverged(message).into(),
            OF_TENSORS => candle_core::Error::Msg(message).into(),
            _ => anyhow!(message).context(OfRank(rank)),
        };
        Some((rank, error))
    })
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

    #[test]
    fn what_all_say_is_known_unless_one_fails() {
        let results = Channels::run(3, |communicator| {
            let rank = communicator.rank() as u8;
            let said = gather_if_all_succeed(communicator, Ok(vec![rank; rank.into()])).unwrap();
            assert_eq!(said, [vec![], vec![1], vec![2, 2]]);
            let own = match rank {
                2 => Err(candle_core::Error::Msg("the SVD did not converge".into()).into()),
                _ => Ok(Vec::new()),
            };
            gather_if_all_succeed(communicator, own).unwrap_err()
        });
        for error in results {
            assert!(error.is::<candle_core::Error>());
            assert_eq!(format!("{error:#}"), "the SVD did not converge");
        }
    }
}
