//! Views of runs that are written, cut, replaced and deleted while they are looked at.

use super::lines::follow;
use super::view::{Standing, View, open};
use crate::checkpoint::RunLock;
use crate::train::RunState;
use std::path::{Path, PathBuf};

/// A run's folder with a plan of 100 steps and 12 tokens a step, and nothing else.
pub(super) fn a_run(folder: &Path) -> PathBuf {
    let yaml = "name: tiny\n\
                model: {n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, \
                weights: {low_rank: {rank: 2}}}\n\
                data: {source: cargo_registry, tokenizer: bytes}\n\
                train: {max_steps: 100, batch_size: 3}\n";
    let plan = crate::spec::parse_plan(yaml, "tiny.yaml", &[]).expect("a good spec").1;
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("plan.yaml"), crate::spec::to_yaml(&plan).expect("YAML"))
        .expect("a plan");
    folder.to_path_buf()
}

/// A line of each kind for a step.
pub(super) fn lines_of(step: u64, loss: f64) -> String {
    let tokens = 12 * step;
    let rank = 2 + step / 50;
    format!(
        "{{\"step\":{step},\"tokens\":{tokens},\"train/loss\":{loss},\"train/grad_norm\":1.5,\
         \"train/lr\":0.003,\"train/lr_low_rank\":0.01,\"train/tok_per_sec\":240.0,\
         \"rank/mean\":{rank}.0,\"time/step\":0.05,\"time/forward\":0.02,\"time/backward\":0.03,\
         \"mem/resident\":52428800}}\n\
         {{\"step\":{step},\"rank/transformer.h.0.attn.q\":{rank},\
         \"rank/transformer.h.1.attn.q\":7}}\n\
         {{\"step\":{step},\"val/loss\":{}}}\n",
        loss + 0.25
    )
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file");
}

#[test]
fn a_view_follows_a_run_through_its_life() {
    let parent = tempfile::tempdir().unwrap();
    let folder = a_run(&parent.path().join("tiny"));
    let lock = RunLock::acquire(&folder).unwrap();
    let mut view: View = open(std::slice::from_ref(&folder)).unwrap().remove(0);
    assert!(view.refresh().is_empty());
    assert_eq!((view.name.as_str(), &view.standing), ("tiny", &Standing::Preparing));
    assert_eq!((view.max_steps, view.tokens_per_step), (100, 12));

    let mut metrics = lines_of(10, 4.0) + &lines_of(20, 3.0);
    write(&folder, "metrics.jsonl", &(metrics.clone() + "{\"step\":30,\"train/lo"));
    write(&folder, "spectra.jsonl", "{\"step\":10,\"a\":[2.0,1.0]}\n{\"step\":20,\"a\":[3.0]}\n");
    std::fs::create_dir(folder.join("samples")).unwrap();
    write(&folder, "samples/step-00000010.txt", "old");
    write(&folder, "samples/step-00000020.txt", "to \u{1b}[2J be\n");
    write(&folder, "samples/step-99999999.tmp", "no sample");
    let validations = view.refresh();
    assert_eq!(validations.iter().map(|of| of.step).collect::<Vec<_>>(), [10, 20]);
    assert_eq!(view.standing, Standing::Run(RunState::Running));
    // 80 steps of 12 tokens at 240 a second.
    assert_eq!(view.seconds_left(), Some(4.0));
    assert_eq!(view.sample, Some((20, "to \\u{1b}[2J be\n".into())));
    let (first, newest) = view.spectra.clone().unwrap();
    assert_eq!((first.step, newest.step, newest.layers[0].1.len()), (10, 20, 1));
    assert_eq!(view.trouble, None);

    // Killed, and resumed at step 10.
    drop(lock);
    assert!(view.refresh().is_empty());
    assert_eq!(view.standing, Standing::Run(RunState::Interrupted));
    assert_eq!(view.seconds_left(), None);
    metrics = lines_of(10, 4.0);
    write(&folder, "metrics.jsonl", &metrics);
    assert_eq!(view.refresh().len(), 1);
    assert_eq!((view.figures.progress.step, view.figures.loss.points().len()), (10, 1));

    write(&folder, "metrics.jsonl", &(metrics + &lines_of(100, 2.0)));
    view.refresh();
    assert_eq!(view.standing, Standing::Run(RunState::Finished));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(view.refresh().is_empty());
    assert_eq!(view.standing, Standing::Gone);
    assert_eq!(view.figures.validation.points(), [(10.0, 4.25), (100.0, 2.25)]);
}

#[test]
fn lines_come_once_and_say_how_the_run_ended() {
    let parent = tempfile::tempdir().unwrap();
    let folders = ["a", "b"].map(|name| a_run(&parent.path().join(name).join("tiny")));
    write(&folders[0], "metrics.jsonl", &(lines_of(50, 3.0) + &lines_of(100, 2.0)));
    write(&folders[1], "metrics.jsonl", &(lines_of(50, 3.0) + "{\"step\":60,\"diverged\":true}\n"));
    let mut out = Vec::new();
    follow(&mut open(&folders).unwrap(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap().replace(&parent.path().display().to_string(), "");
    assert_eq!(
        text,
        "/a/tiny  step  50/100  val 3.2500  loss 3.0000  rank 3.0  240 tokens/s\n\
         /a/tiny  step 100/100  val 2.2500  loss 2.0000  rank 4.0  240 tokens/s\n\
         /a/tiny  finished at step 100/100\n\
         /b/tiny  step  50/100  val 3.2500  loss 3.0000  rank 3.0  240 tokens/s\n\
         /b/tiny  diverged at step 60/100\n"
    );
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let error = open(&[parent.path().join("missing")]).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(error.to_string().contains("missing holds no run to watch"), "{error}");
}
