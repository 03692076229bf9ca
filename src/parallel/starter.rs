//! Processes of one program on this machine, started as `torchrun` starts them and watched until
//! they end.

use super::communicator::tells_of_the_end_of_another;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between two looks at the processes.
const POLL: Duration = Duration::from_millis(10);
/// For so long the others may go on once one has failed: they notice it unless they hang.
const GRACE: Duration = Duration::from_secs(10);
/// Ports below those that systems give to outgoing connections, which could take one meanwhile.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Processes that meet over TCP on this machine; dropped, those that still run are killed.
pub struct Group {
    members: Vec<Member>,
}

struct Member {
    child: Child,
    /// Reads what it says to stderr; of all but rank 0.
    listener: Option<JoinHandle<Said>>,
    has_ended: bool,
}

/// What a process has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    /// Its last error, or else its last line.
    last_words: String,
    /// Whether it has spoken of the end of another.
    tells_of_another: bool,
}

/// A process that did not succeed: the one that ended the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub rank: usize,
    /// How it ended.
    pub status: ExitStatus,
    /// Its last error, or else its last line; empty for rank 0, which has this process's stderr.
    pub last_words: String,
    tells_of_another: bool,
    was_killed_here: bool,
}

impl Group {
    /// Starts `world` processes of a command, which is made for each.
    ///
    /// Rank 0 has this process's stdout and stderr; of the others only stderr is passed on, less
    /// what they say of the end of another. Each of them has a stdin that closes when this process
    /// dies.
    ///
    /// # Errors
    /// If one cannot be started, or no port is free.
    pub fn start(world: usize, command: &dyn Fn() -> Result<Command>) -> Result<Self> {
        let port = free_port().context("no port is free for the processes to meet at")?;
        // Dropped, and with it those that were started, where another cannot be.
        let mut group = Self { members: Vec::with_capacity(world) };
        for rank in 0..world {
            let mut command = command()?;
            command
                .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port.to_string())])
                .envs([("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string())])
                .envs([("LOCAL_RANK", rank.to_string()), ("LOCAL_WORLD_SIZE", world.to_string())])
                .stdin(Stdio::piped());
            if rank > 0 {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
            }
            let mut child =
                command.spawn().with_context(|| format!("cannot start process {rank}"))?;
            let listener = child.stderr.take().map(|said| std::thread::spawn(|| pass_on(said)));
            group.members.push(Member { child, listener, has_ended: false });
        }
        Ok(group)
    }

    /// Waits until all have ended; the one to blame, if not all succeeded. Once `is_to_stop` says
    /// so, asks each of them to stop, by SIGTERM.
    ///
    /// # Errors
    /// If they cannot be waited for.
    pub fn wait(mut self, is_to_stop: &dyn Fn() -> bool) -> Result<Option<Ended>> {
        let (mut was_asked, mut is_killed, mut first_failure) = (false, false, None);
        // In the order in which it was seen.
        let mut failed = Vec::new();
        while self.members.iter().any(|member| !member.has_ended) {
            for (rank, member) in self.members.iter_mut().enumerate() {
                let status = match member.has_ended {
                    true => None,
                    false => member.child.try_wait().context("cannot wait for a process")?,
                };
                let Some(status) = status else { continue };
                member.has_ended = true;
                let said = member.listener.take().and_then(|listener| listener.join().ok());
                if !status.success() {
                    let Said { last_words, tells_of_another } = said.unwrap_or_default();
                    let was_killed_here = is_killed;
                    failed.push(Ended {
                        rank,
                        status,
                        last_words,
                        tells_of_another,
                        was_killed_here,
                    });
                    first_failure.get_or_insert_with(Instant::now);
                }
            }
            if !was_asked && is_to_stop() {
                was_asked = true;
                self.running().for_each(|member| terminate(&mut member.child));
            }
            if first_failure.is_some_and(|at: Instant| at.elapsed() > GRACE) {
                is_killed = true;
                self.kill();
            }
            std::thread::sleep(POLL);
        }
        Ok(failed.into_iter().min_by_key(Ended::innocence))
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Member> {
        self.members.iter_mut().filter(|member| !member.has_ended)
    }

    fn kill(&mut self) {
        for member in self.running() {
            // It may have ended by itself meanwhile.
            let _ = member.child.kill();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        for member in self.running() {
            let _ = member.child.wait();
        }
    }
}

impl Ended {
    /// Least for the one that failed by itself, while the others ended because it did: a signal
    /// comes from outside; rank 0 is to blame where all others speak of another's end.
    fn innocence(&self) -> u8 {
        match self {
            _ if self.was_killed_here => 4,
            _ if self.status.code().is_none() => 0,
            Self { rank: 0, .. } => 2,
            _ if self.tells_of_another => 3,
            _ => 1,
        }
    }
}

/// Passes on what a process says, less that another has ended, and keeps its last words.
fn pass_on(said: ChildStderr) -> Said {
    let (mut last_line, mut last_error, mut tells_of_another) = (String::new(), None, false);
    for line in BufReader::new(said).split(b'\n').map_while(std::io::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if tells_of_the_end_of_another(&line) {
            tells_of_another = true;
        } else {
            // Whoever reads it may have gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        let line = line.trim();
        // A backtrace may come after it.
        if line.starts_with("error: ") {
            last_error = Some(line.to_owned());
        }
        if !line.is_empty() {
            last_line = line.to_owned();
        }
    }
    Said { last_words: last_error.unwrap_or(last_line), tells_of_another }
}

/// A port that is free; processes that look at the same time begin at different places.
fn free_port() -> Option<u16> {
    let count = u32::from(PORTS.end - PORTS.start);
    let port = |index: u32| PORTS.start + (index % count) as u16;
    let first = std::process::id() % count;
    (first..first + count).map(port).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// Asks a process to stop with a checkpoint.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // SAFETY: no memory is involved; the process has not been waited for, so that the number is
        // still its own.
        let _ = unsafe { libc::kill(id, libc::SIGTERM) };
    }
}

/// Asks a process to stop with a checkpoint, by the end of its stdin where there are no signals.
#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    drop(child.stdin.take());
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Processes of a shell that do this.
    fn ended(world: usize, script: &str) -> Option<Ended> {
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Ok(command)
        };
        let group = Group::start(world, &command).expect("they start");
        group.wait(&|| false).expect("they end")
    }

    #[test]
    fn each_is_told_who_it_is() {
        let script = "test $WORLD_SIZE = 3 -a $LOCAL_WORLD_SIZE = 3 -a $LOCAL_RANK = $RANK \
                      -a $MASTER_ADDR = 127.0.0.1 -a $MASTER_PORT -ge 20000";
        assert_eq!(ended(3, script), None);
        let last = ended(3, "test $RANK != 2").expect("the last one fails");
        assert_eq!((last.rank, last.status.code()), (2, Some(1)));
    }

    /// Whoever ended first, the others say that they ended because of it, some of them before.
    #[test]
    fn the_one_that_ended_the_others_is_named() {
        let blamed = |script: &str| {
            let ended = ended(3, script).expect("they fail");
            (ended.rank, ended.status.code(), ended.last_words)
        };
        let words = "if test $RANK = 1; then sleep 0.1; echo too large >&2; exit 2; fi; \
                     echo rank $RANK ends all processes: rank 1 has ended >&2; echo at >&2; exit 1";
        assert_eq!(blamed(words), (1, Some(2), "too large".to_owned()));
        let traced =
            "test $RANK = 2 || exit 0; echo error: no memory >&2; echo at main >&2; exit 1";
        assert_eq!(blamed(traced), (2, Some(1), "error: no memory".to_owned()));
        let killed = "test $RANK = 2 && kill -9 $$; echo ERROR rank 2 has ended >&2; exit 1";
        assert_eq!(blamed(killed), (2, None, String::new()));
        let first = "test $RANK = 0 && exit 3; echo rank 0 has ended in vain >&2; exit 1";
        assert_eq!(blamed(first), (0, Some(3), String::new()));
    }

    #[test]
    fn all_are_asked_to_stop_and_none_outlives_the_group() {
        let command = || {
            let mut command = Command::new("sleep");
            command.arg("60");
            Ok(command)
        };
        let started = Instant::now();
        let group = Group::start(2, &command).expect("they start");
        let ended = group.wait(&|| true).expect("they end").expect("by a signal");
        assert_eq!(ended.status.code(), None);
        drop(Group::start(2, &command).expect("they start"));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
