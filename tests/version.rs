//! Which commit `lrpt --version` names: what the build script reads from a checkout.

#[allow(dead_code)] // its main belongs to Cargo
#[path = "../src/build.rs"]
mod build_script;

use build_script::Checkout;
use std::path::Path;
use std::process::Command;

/// What git prints; none where there is no git.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let settings = ["-c", "user.name=a", "-c", "user.email=b@c", "-c", "init.defaultBranch=main"];
    let output = Command::new("git").args(settings).args(arguments).current_dir(folder).output();
    let output = output.ok()?;
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    Some(String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned())
}

#[test]
fn a_commit_is_named_and_every_move_of_the_checkout_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let top = folder.path().join("top");
    std::fs::create_dir_all(top.join("copy")).expect("a folder");
    assert!(Checkout::of(&top).is_none(), "no repository");
    let Some(_) = git(&top, &["init", "--quiet"]) else { return };
    assert!(Checkout::of(&top).is_none(), "no commit yet");
    let commit = |message: &str| {
        git(&top, &["commit", "--quiet", "--allow-empty", "-m", message]);
        git(&top, &["rev-parse", "--short", "HEAD"]).expect("a hash")
    };
    let first = commit("first");
    assert_eq!(Checkout::of(&top).expect("a checkout").commit, first);
    assert!(Checkout::of(&top.join("copy")).is_none(), "not the top");

    // A worktree has a file for .git; a packed branch has no file of its own.
    git(&top, &["worktree", "add", "--quiet", "../tree", "-b", "other"]);
    let tree = folder.path().join("tree");
    git(&top, &["pack-refs", "--all"]);
    for place in [&top, &tree] {
        let before = Checkout::of(place).expect("a checkout");
        let state = |checkout: &Checkout| -> Vec<Vec<u8>> {
            let files = checkout.moves_with.iter();
            files.map(|file| std::fs::read(place.join(file)).expect("there")).collect()
        };
        let read = state(&before);
        assert!(!read.is_empty());
        git(place, &["commit", "--quiet", "--allow-empty", "-m", "second"]);
        assert_ne!(state(&before), read, "a commit changes one of {before:?}");
        assert_ne!(Checkout::of(place).expect("a checkout").commit, before.commit);
        let read = state(&before);
        git(place, &["checkout", "--quiet", "--detach", &first]);
        assert_ne!(state(&before), read, "so does another checkout");
        assert_eq!(Checkout::of(place).expect("a checkout").commit, first);
    }
}
