//! Which launcher started this process, as which of how many.

use std::num::NonZeroUsize;

/// What a launcher says in the environment of the processes it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The launcher, as people call it.
    pub by: &'static str,
    /// How many processes it started.
    pub world: usize,
    /// Number of this one.
    pub rank: usize,
    /// How many of them are on this machine.
    pub local_world: usize,
    /// Number of this one among those on this machine.
    pub local_rank: usize,
    /// Computing threads that each process was given, where the launcher says so.
    pub threads: Option<usize>,
    /// Whether the launcher bound each process to cores of its own.
    pub is_bound: bool,
    /// Host and port where rank 0 can be met, where the environment says it.
    pub address: Option<String>,
}

/// What [`Launch::by`] is for `torchrun` and its like, whose processes have no library in common.
const TORCHRUN: &str = "a launcher like torchrun";

/// Variables of one launcher: its name, world, rank, local world, local rank.
const VARIABLES: [(&str, [&str; 4]); 5] = [
    // Before Slurm, in whose steps it may run.
    (TORCHRUN, ["WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"]),
    (
        "mpirun of Open MPI",
        [
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ],
    ),
    ("mpirun of MPICH", ["PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"]),
    // SLURM_NTASKS is that of the allocation, which the batch script has, too, as its only process:
    // only a step that srun started has both of these.
    ("srun", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "", "SLURM_LOCALID"]),
    ("a launcher with PMIx", ["PMIX_SIZE", "PMIX_RANK", "", ""]),
];

impl Launch {
    /// The launcher of this process; none where it was started by itself, or as the only one.
    pub fn detect() -> Option<Self> {
        Self::from(|name| std::env::var(name).ok())
    }

    /// The launcher that variables speak of.
    fn from(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let text = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
        let address = text("MASTER_ADDR").zip(text("MASTER_PORT"));
        let address = address.map(|(host, port)| format!("{}:{}", host.trim(), port.trim()));
        VARIABLES.iter().find_map(|(by, [world, rank, local_world, local_rank])| {
            let (world, rank) = (number(world)?, number(rank)?);
            // Anyone may have set a RANK for another reason.
            if world < 2 || rank >= world || (*by == TORCHRUN && address.is_none()) {
                return None;
            }
            // Slurm writes 4(x2),3: tasks of the nodes in turn; the first is near enough where
            // nodes differ.
            let of_slurm = || {
                let text = variable("SLURM_STEP_TASKS_PER_NODE")?;
                text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            Some(Self {
                by,
                world,
                rank,
                local_world: number(local_world).or_else(of_slurm).unwrap_or(world).max(1),
                local_rank: number(local_rank).unwrap_or(0),
                threads: number("SLURM_CPUS_PER_TASK").filter(|threads| *threads > 0),
                is_bound: variable("OMPI_MCA_orte_bound_at_launch").is_some(),
                address: address.clone(),
            })
        })
    }

    /// Whether the processes have nothing in common but the address of rank 0.
    pub fn is_by_address(&self) -> bool {
        self.by == TORCHRUN
    }

    /// This process's share of the machine's `cores` that it may use, at least 1.
    pub fn share_of(&self, cores: usize) -> NonZeroUsize {
        let share = match self.threads {
            Some(threads) => threads,
            None if self.is_bound => cores,
            None => cores / self.local_world,
        };
        NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Option<Launch> {
        Launch::from(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_are_known_by_what_they_say() {
        let open_mpi = launch(&[
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ])
        .unwrap();
        assert_eq!((open_mpi.world, open_mpi.rank), (8, 5));
        assert_eq!((open_mpi.local_world, open_mpi.local_rank), (4, 1));
        assert_eq!((open_mpi.share_of(16).get(), open_mpi.share_of(2).get()), (4, 1));
        let bound = Launch { is_bound: true, ..open_mpi };
        assert_eq!(bound.share_of(2).get(), 2);

        let srun = launch(&[
            ("SLURM_NTASKS", "6"),
            ("SLURM_STEP_NUM_TASKS", "6"),
            ("SLURM_PROCID", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "3(x2)"),
            ("SLURM_CPUS_PER_TASK", "5"),
        ])
        .unwrap();
        assert_eq!((srun.by, srun.world, srun.rank), ("srun", 6, 4));
        assert_eq!((srun.local_world, srun.local_rank, srun.share_of(64).get()), (3, 1, 5));
    }

    #[test]
    fn torchrun_is_known_by_where_rank_0_is_met_also_within_slurm() {
        let torchrun = [
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("WORLD_SIZE", "8"),
            ("RANK", "5"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29500"),
        ];
        let found = launch(&torchrun).unwrap();
        assert!(found.is_by_address());
        assert_eq!((found.world, found.rank, found.local_rank), (8, 5, 1));
        assert_eq!(found.address.as_deref(), Some("node1:29500"));
        let srun = launch(&torchrun[..6]).unwrap();
        assert_eq!((srun.by, srun.world, srun.address), ("srun", 2, None));
        assert_eq!(launch(&torchrun[2..6]), None);
    }

    #[test]
    fn a_process_by_itself_has_no_launcher() {
        assert_eq!(launch(&[]), None);
        // A batch script's own environment.
        assert_eq!(launch(&[("SLURM_NTASKS", "6"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(launch(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]), None);
        assert_eq!(launch(&[("PMI_SIZE", "2"), ("PMI_RANK", "2")]), None);
        assert_eq!(launch(&[("PMI_SIZE", "many"), ("PMI_RANK", "2")]), None);
    }
}
