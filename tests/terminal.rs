//! `lrpt watch` on a terminal of its own, which it leaves as it found it.
#![cfg(unix)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use support::Workplace;

/// The bytes that enter and leave the second screen, and show the cursor.
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";
const CURSOR: &str = "\x1b[?25h";

/// A terminal of 80 × 24: the side of the program, the side of who looks at it, what was shown.
struct Terminal {
    program: OwnedFd,
    user: File,
    shown: Vec<u8>,
}

impl Terminal {
    fn open() -> Self {
        let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut user, mut program) = (-1, -1);
        let (name, modes) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both places for descriptors and the size are valid for the call.
        let opened = unsafe { libc::openpty(&mut user, &mut program, name, modes, &raw mut size) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the call gave us the descriptors, and nobody else has them. A child that had the
        // user's side as well would keep its own terminal open.
        let (user, program) = unsafe {
            libc::fcntl(user, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(program, libc::F_SETFD, libc::FD_CLOEXEC);
            (File::from_raw_fd(user), OwnedFd::from_raw_fd(program))
        };
        Self { program, user, shown: Vec::new() }
    }

    /// Takes what the program writes within a few milliseconds.
    fn look(&mut self) {
        let mut ready =
            libc::pollfd { fd: self.user.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, ours, for the time of the call.
        if unsafe { libc::poll(&mut ready, 1, 5) } > 0 {
            let mut bytes = [0; 4096];
            let count = self.user.read(&mut bytes).unwrap_or(0);
            self.shown.extend_from_slice(&bytes[..count]);
        }
    }

    /// How the terminal treats what is typed: echo, lines, signals.
    fn modes(&self) -> [libc::tcflag_t; 4] {
        // SAFETY: zeros are a valid value of this plain structure, which the call then fills.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and the structure ours.
        let read = unsafe { libc::tcgetattr(self.program.as_raw_fd(), &mut modes) };
        assert_eq!(read, 0, "{}", std::io::Error::last_os_error());
        [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
    }

    /// Starts a command here: as a shell does, so that it hears when the terminal goes, or not.
    fn start(&self, mut command: Command, hears: bool) -> Child {
        let end = || self.program.try_clone().expect("a descriptor");
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                if hears {
                    libc::ioctl(0, libc::TIOCSCTTY as _, 0);
                }
                Ok(())
            });
        }
        command.spawn().expect("the binary starts")
    }

    /// Waits until this has been shown.
    fn wait_for(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            self.look();
            let shown = String::from_utf8_lossy(&self.shown).into_owned();
            if shown.contains(text) {
                return shown;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{text:?} in {shown}");
        }
    }
}

/// The exit code of a child that ends within seconds.
fn exit_code(child: &mut Child, mut meanwhile: impl FnMut()) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        if started.elapsed() > Duration::from_secs(10) {
            let _ = child.kill();
            panic!("it does not end");
        }
        meanwhile();
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn place_with_a_run() -> Workplace {
    let place = Workplace::new();
    let spec = place.spec("{low_rank: {rank: 6}}", "");
    place.run(&["train", spec.to_str().expect("UTF-8")], 0);
    place
}

/// One test, since a child that another one starts could keep a terminal open.
#[test]
fn the_terminal_is_left_as_it_was_and_nobody_stays_when_it_goes() {
    let place = place_with_a_run();
    for (way, code) in [("q", 0), ("\x03", 0), ("-TERM", 143), ("-HUP", 129), ("-INT", 130)] {
        let mut terminal = Terminal::open();
        let before = terminal.modes();
        let mut child = terminal.start(place.lrpt(&["watch", "runs/small"]), true);
        assert!(terminal.wait_for("Spectra").contains(ENTERS), "{way}");
        assert_ne!(terminal.modes(), before, "{way}: keys come one by one");
        if way.starts_with('-') {
            let sent = Command::new("kill").args([way, &child.id().to_string()]).status();
            assert!(sent.expect("kill").success());
        } else {
            terminal.user.write_all(way.as_bytes()).expect("typed");
        }
        assert_eq!(exit_code(&mut child, || terminal.look()), Some(code), "{way}");
        terminal.wait_for(LEAVES);
        let shown = terminal.wait_for(CURSOR);
        assert!(shown.rfind(LEAVES) > shown.rfind(ENTERS), "{way}");
        assert!(!shown[shown.rfind(LEAVES).unwrap_or(0)..].contains("lrpt watch"), "{way}");
        assert_eq!(terminal.modes(), before, "{way}");
    }
    // A connection breaks: with the signal that tells a shell's programs so, and without.
    for hears in [true, false] {
        let mut terminal = Terminal::open();
        let mut child = terminal.start(place.lrpt(&["watch", "runs/small"]), hears);
        terminal.wait_for("Spectra");
        drop(terminal);
        let gone = Instant::now();
        assert_eq!(exit_code(&mut child, || ()), Some(129), "hears: {hears}");
        assert!(gone.elapsed() < Duration::from_secs(3), "{:?}", gone.elapsed());
    }
}
