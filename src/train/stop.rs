//! Signals: while data is prepared, one leaves at once; after that, the first Ctrl-C, SIGTERM,
//! SIGHUP, SIGUSR1 or SIGXCPU is answered and asks for a clean stop, the second leaves at once.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXCPU, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether a signal has asked the run to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    signal: Arc<AtomicUsize>,
    step: Arc<AtomicU64>,
    preparation: Arc<Mutex<Preparation>>,
    is_answered: Arc<AtomicBool>,
}

/// The time before there is anything to be saved.
#[derive(Default)]
struct Preparation {
    is_over: bool,
    before_leaving: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preparation").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl StopSignal {
    /// Listens for signals from now on. Until [`StopSignal::preparation_ends`] each of them ends
    /// the process: there is nothing yet to be saved. SIGXFSZ is heard and asks for nothing, so
    /// that a file at the size limit is an error of the write and not the end of the process.
    /// SIGHUP stays ignored where it was (under `nohup`).
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn install() -> std::io::Result<Self> {
        let stop = Self::default();
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut heard = vec![SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGXCPU];
        heard.retain(|signal| *signal != SIGHUP || !hang_up_is_ignored());
        for signal in &heard {
            // In this order: the second signal finds the flag set and exits, the first one sets it.
            let asked = Arc::new(AtomicBool::new(false));
            flag::register_conditional_shutdown(*signal, 128 + signal, Arc::clone(&asked))?;
            flag::register(*signal, asked)?;
            flag::register_usize(*signal, Arc::clone(&stop.signal), *signal as usize)?;
        }
        // The thread that computes looks at the flag between two steps; this one answers at once.
        let mut signals = Signals::new(heard)?;
        let answers = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                answers.leave_while_preparing(signal);
                // A second one of another kind, as whoever started this process may send after a
                // Ctrl-C that reached both, asks for nothing new.
                if !answers.is_answered.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{}", answers.answer(signal));
                }
            }
        })?;
        Ok(stop)
    }

    /// What is done before a signal ends the process while it prepares.
    pub fn before_leaving(&self, clean_up: impl FnOnce() + Send + 'static) {
        self.preparation().before_leaving = Some(Box::new(clean_up));
    }

    /// From now on the first signal asks for a clean stop.
    pub fn preparation_ends(&self) {
        *self.preparation() = Preparation { is_over: true, before_leaving: None };
    }

    /// From now on processes that this one has started answer signals, which reach them, too.
    pub fn is_answered_by_others(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
    }

    /// Which step is being taken, for the answer to a signal.
    pub fn takes_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Asks for a stop as if by this signal.
    pub fn request(&self, signal: i32) {
        self.leave_while_preparing(signal);
        self.signal.store(signal as usize, Ordering::Relaxed);
    }

    /// The signal that asked for a stop, if any.
    pub fn requested(&self) -> Option<i32> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    fn preparation(&self) -> std::sync::MutexGuard<'_, Preparation> {
        self.preparation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process if it only prepares; nobody ends the preparation meanwhile.
    fn leave_while_preparing(&self, signal: i32) {
        let mut preparation = self.preparation();
        if !preparation.is_over {
            preparation.before_leaving.take().into_iter().for_each(|clean_up| clean_up());
            std::process::exit(128 + signal);
        }
    }

    fn answer(&self, signal: i32) -> String {
        let (name, again) = match signal {
            SIGINT => ("Ctrl-C", "press again"),
            SIGTERM => ("SIGTERM", "send it again"),
            SIGHUP => ("SIGHUP", "send it again"),
            SIGUSR1 => ("SIGUSR1", "send it again"),
            SIGXCPU => ("SIGXCPU", "send it again"),
            _ => ("a signal", "send it again"),
        };
        let what = match self.step.load(Ordering::Relaxed) {
            0 => "stopping with a checkpoint".to_owned(),
            step => format!("finishing step {step} and writing a checkpoint"),
        };
        format!("{name}: {what}; {again} to quit now")
    }
}

/// Whether the process was started with SIGHUP ignored, as far as the system tells.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}
