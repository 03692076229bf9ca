//! Whether a run fits into the memory there is.

use crate::account::Ledger;
use crate::bench::available_memory;
use crate::device;
use crate::error::Failure;
use crate::figures::bytes;
use crate::spec::Plan;
use anyhow::Result;
use candle_core::Device;

/// Refuses a run of `world` processes whose ledger is larger than the free memory of its device,
/// which `local` of them share where it is the CPU; a vocabulary that only the data can tell counts as empty.
///
/// # Errors
/// [`Failure::Usage`] with both figures.
pub fn refuse_unless_fits(
    plan: &Plan,
    device: &Device,
    (world, local): (usize, usize),
) -> Result<()> {
    let vocabulary = super::spec::vocabulary_size(plan)?.unwrap_or(0);
    let ledger = Ledger::new(plan, vocabulary, rayon::current_num_threads());
    let expected = ledger.peak_of_process(world as u64);
    let available = match device {
        Device::Cpu => available_memory().map(|memory| memory / local.max(1) as u64),
        _ => device::memory(device).map(|memory| memory.free),
    };
    refuse_beyond(&plan.name, expected, available)
}

/// Refuses a run that is expected to take more than there is.
///
/// # Errors
/// [`Failure::Usage`] with both figures.
pub fn refuse_beyond(name: &str, expected: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(available) if expected > available => Err(Failure::Usage(format!(
            "{name}: expected to need {} of memory, and {} are available; reduce `train.batch_size` (and raise \
             `train.gradient_accumulation_steps`), `model.block_size` or the network, or try with --force",
            bytes(expected),
            bytes(available)
        ))
        .into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_refused_with_both_figures_only_where_it_does_not_fit() {
        let error = refuse_beyond("large", 3 << 30, Some(2 << 30)).expect_err("too large");
        let message = error.to_string();
        assert!(message.contains("3.22 GB") && message.contains("2.15 GB"), "{message}");
        assert_eq!(crate::error::exit_code(&error), 2);
        refuse_beyond("small", 2 << 30, Some(2 << 30)).expect("it fits");
        refuse_beyond("unknown", u64::MAX, None).expect("nothing to compare with");
    }
}
