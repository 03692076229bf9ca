//! Many runs from one file: expanded, solved for equal budgets, run side by side, resumable at any
//! point.
//!
//! ```text
//! sweep_spec   what a user may write in a sweep's YAML
//! expand       a sweep -> its runs, each a complete spec
//! equal        steps, rank or width that give a run the baseline's tokens, parameters, FLOPs or
//!              seconds
//! manifest     the expansion on disk, and each run's state as its folder shows it
//! experiment   the runs of a sweep, or any runs, labelled for a comparison
//! calibrate    seconds of a step of each kind of run, here
//! launch       runs as child processes, side by side
//! slurm        the same runs as a Slurm array job
//! ```

mod calibrate;
mod equal;
mod expand;
mod experiment;
mod launch;
mod manifest;
mod slurm;
mod sweep_spec;

pub use calibrate::Calibration;
pub use equal::{Load, Solver, Wish, final_parameters, planned_operations};
pub use expand::{PlannedRun, Sweep};
pub use experiment::{experiment, plain_runs};
pub use launch::{LaunchOptions, Launched, launch, training};
pub use manifest::{ManifestRun, RunState, Stage, SweepManifest, refuse_links};
pub use slurm::{SlurmOptions, SlurmScript, slurm_scripts};
pub use sweep_spec::{Budget, Equal, SearchSpec, SweepSpec, Unknown, VariantSpec, read_sweep};
