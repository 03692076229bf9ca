//! Several examples in a row: attention, loss and gradients are those of each by itself, the epoch
//! is whole, and a run resumes to the byte.

mod support;

use candle_core::{DType, Device, Result, Tensor};
use lrpt::data::{Batch, Batches, Dataset, prepare};
use lrpt::model::{Network, Sequences, build};
use lrpt::ops::{
    self, AttentionHeads, Dropout, Gradients, PackedDocuments, Rotation, Tape, Targets,
};
use std::sync::Arc;
use support::{Workplace, assert_same};

const CPU: Device = Device::Cpu;

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).and_then(|x| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>());
    difference.expect("two tensors of one shape")
}

/// Documents of these lengths, one row each.
fn documents(rows: &[&[usize]]) -> PackedDocuments {
    let position = |row: &[usize]| row.iter().flat_map(|length| 0..*length as u32).collect();
    let positions: Vec<Vec<u32>> = rows.iter().map(|row| position(row)).collect();
    PackedDocuments::new(&Tensor::new(positions, &CPU).expect("rows of one length"))
        .expect("documents")
}

/// Attention and its gradients, q, k and v as the slots 0, 1 and 2.
fn attended(
    [q, k, v]: [&Tensor; 3],
    heads: AttentionHeads,
    documents: Option<&PackedDocuments>,
    dropout: Option<Dropout>,
    portable: bool,
) -> Result<[Tensor; 4]> {
    let tape = if portable { Tape::training().portable() } else { Tape::training() };
    let [to_q, to_k, to_v] = [tape.parameter(0, q), tape.parameter(1, k), tape.parameter(2, v)];
    let out = match documents {
        None => ops::causal_attention(&tape, &to_q, &to_k, &to_v, heads, dropout)?,
        Some(documents) => {
            ops::document_attention(&tape, [&to_q, &to_k, &to_v], heads, documents, dropout)?
        }
    };
    // Σ w ∘ out, with a weight for every number that is the same in a row of its own.
    let weights = (q * 0.7)?.sin()?;
    let weighted = (out.tensor() * &weights)?.sum_all()?;
    let to_out = out.source();
    let loss = tape.record(&[to_out], weighted, move |_, flow| flow.add(to_out, weights));
    let mut gradients = Gradients::new(3);
    tape.backward(&loss, &mut gradients)?;
    let gradient = |slot| gradients.get(slot).cloned().expect("a gradient");
    Ok([out.tensor().clone(), gradient(0), gradient(1), gradient(2)])
}

/// Documents shorter and longer than a tile of either path, grouped heads of keys.
#[test]
fn attention_within_documents_is_attention_to_each_by_itself() -> Result<()> {
    let rows: [&[usize]; 2] = [&[300, 1, 65, 34], &[1, 1, 128, 270]];
    let heads = AttentionHeads { queries: 4, keys: 2 };
    let random = |heads: usize| Tensor::randn(0f64, 1.0, (2, 400, heads * 6), &CPU);
    let (q, k, v) = (random(4)?, random(2)?, random(2)?);
    let packed = documents(&rows);
    for portable in [false, true] {
        let whole = attended([&q, &k, &v], heads, Some(&packed), None, portable)?;
        for (row, lengths) in rows.iter().enumerate() {
            let mut first = 0;
            for length in *lengths {
                let part = |x: &Tensor| x.narrow(0, row, 1)?.narrow(1, first, *length);
                let (q, k, v) = (part(&q)?, part(&k)?, part(&v)?);
                let alone = attended([&q, &k, &v], heads, None, None, portable)?;
                for (which, (whole, alone)) in whole.iter().zip(&alone).enumerate() {
                    let error = largest_difference(&part(whole)?, alone);
                    assert!(error < 1e-12, "{which} of {row}, {first}, {length}: {error}");
                }
                first += length;
            }
        }
    }
    // Dropout is a function of the place, whichever code computes.
    let dropout = Some(Dropout { probability: 0.3, key: 5 });
    let ours = attended([&q, &k, &v], heads, Some(&packed), dropout, false)?;
    let portable = attended([&q, &k, &v], heads, Some(&packed), dropout, true)?;
    for (a, b) in ours.iter().zip(&portable) {
        assert!(largest_difference(a, b) < 1e-12);
    }
    let error = attended([&q, &k, &v], heads, Some(&documents(&[&[400]])), None, false);
    assert!(error.expect_err("one row for two").to_string().contains("documents of [1, 400]"));
    Ok(())
}

#[test]
fn rotary_positions_begin_again() -> Result<()> {
    let packed = documents(&[&[3, 4], &[5, 2]]);
    let x = Tensor::randn(0f64, 1.0, (2, 7, 8), &CPU)?;
    let rotation = Rotation::new(4, 100.0, 0, 7, DType::F64, &CPU)?;
    let of_documents = rotation.of_documents(&packed)?;
    for tape in [Tape::inference(), Tape::inference().portable()] {
        let turned = ops::rotary(&tape, &tape.constant(x.clone()), &of_documents)?;
        for (row, first, length) in [(0, 0, 3), (0, 3, 4), (1, 0, 5), (1, 5, 2)] {
            let part = |x: &Tensor| x.narrow(0, row, 1)?.narrow(1, first, length)?.contiguous();
            let rotation = Rotation::new(4, 100.0, 0, length, DType::F64, &CPU)?;
            let alone = ops::rotary(&tape, &tape.constant(part(&x)?), &rotation)?;
            assert!(largest_difference(&part(turned.tensor())?, alone.tensor()) < 1e-14);
        }
    }
    let short = Rotation::new(4, 100.0, 0, 4, DType::F64, &CPU)?.of_documents(&packed);
    assert!(short.expect_err("short").to_string().contains("4 positions for a document of 5"));
    Ok(())
}

/// Lines of prompts and completions of many lengths.
fn instructions(place: &Workplace) {
    let words = ["rank", "of", "a", "matrix", "grows"];
    let text = |from: usize, count: usize| -> String {
        (from..from + count).map(|i| words[i * i % 5]).collect::<Vec<_>>().join(" ")
    };
    let line = |i: usize| {
        let (prompt, completion) = (text(i, 1 + i % 3), text(i + 2, 1 + i % 5));
        format!("{{\"prompt\": \"{prompt}: \", \"completion\": \"{completion}\"}}\n")
    };
    std::fs::write(place.path("chat.jsonl"), (0..60).map(line).collect::<String>()).expect("lines");
}

const SOURCE: &str = "data={source: {instructions: {train: [chat.jsonl]}}, tokenizer: chars}";

fn dataset(place: &Workplace) -> Dataset {
    instructions(place);
    let source = SOURCE.replace("chat.jsonl", place.path("chat.jsonl").to_str().expect("UTF-8"));
    let (_, plan) = lrpt::spec::load_plan(&place.spec("dense", ""), &[source]).expect("a plan");
    prepare(&plan.data, &place.path("data")).expect("data")
}

fn network(arch: &str, vocabulary: usize) -> Box<dyn Network> {
    let config = serde_json::json!({
        "arch": arch, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "block_size": 64,
        "vocab_size": vocabulary, "dropout": 0.0, "bias": true, "weights": {}
    });
    build(serde_json::from_value(config).expect("a configuration")).expect("a network")
}

/// An epoch as one batch has the loss and the gradients of the same examples, each a row of its
/// own, for learned and for rotary positions and on either path.
#[test]
fn loss_and_gradients_are_those_of_an_example_a_row() {
    let dataset = dataset(&Workplace::new());
    let text = Arc::new(dataset.train);
    let epoch = |packed: bool| -> Batch {
        let batches = |size| {
            let batches = Batches::new(text.clone(), 64, size, 1, 3).expect("batches");
            if packed { batches.packed().expect("packed") } else { batches }
        };
        let rows = batches(1).windows() as usize;
        assert_eq!(rows, if packed { 20 } else { 54 });
        batches(rows).at(0, 0).expect("a batch")
    };
    let (packed, alone) = (epoch(true), epoch(false));
    let filled = packed.positions.as_ref().expect("positions").to_vec2::<u32>().expect("rows");
    assert!(filled.iter().any(|row| row.iter().filter(|position| **position == 1).count() > 1));
    for arch in ["gpt2", "llama"] {
        let model = network(arch, dataset.summary.vocab_size);
        let params = model.initialize(3, DType::F64, &CPU).expect("parameters");
        for portable in [false, true] {
            let of = |batch: &Batch| -> Result<(f64, Gradients)> {
                let tape = model.training_tape();
                let tape = if portable { tape.portable() } else { tape };
                let documents = batch.positions.as_ref().map(PackedDocuments::new).transpose()?;
                let sequences = Sequences { tokens: &batch.inputs, documents: documents.as_ref() };
                let trained = batch.trained.as_ref().expect("a mask");
                let targets = Targets::only(&batch.targets, &trained.rows, trained.divisor);
                let loss = model.loss_of(&params, &tape, sequences, targets, None)?;
                let mut gradients = Gradients::new(params.slot_count());
                tape.backward(&loss, &mut gradients)?;
                Ok((loss.tensor().to_scalar()?, gradients))
            };
            let ((ours, of_packed), (expected, of_alone)) =
                (of(&packed).expect("a pass"), of(&alone).expect("a pass"));
            assert!((ours - expected).abs() < 1e-12, "{arch}: {ours} {expected}");
            for (id, parameter) in params.iter() {
                let slot = lrpt::params::ParamStore::slot(id);
                let [a, b] = [&of_packed, &of_alone].map(|all| all.get(slot).expect("a gradient"));
                let error = largest_difference(a, b);
                assert!(error < 1e-12, "{arch}, {}: {error}", parameter.name);
            }
        }
    }
}

/// However a step is split, its trained tokens are the same and their weights add up to 1.
#[test]
fn an_epoch_sees_every_example_once_however_it_is_split() {
    let dataset = dataset(&Workplace::new());
    let text = Arc::new(dataset.train);
    let packed = |size, micro| {
        Batches::new(text.clone(), 64, size, micro, 3).expect("batches").packed().expect("packed")
    };
    for (size, micro) in [(10, 1), (1, 10)] {
        let batches = packed(size, micro);
        let mut count = 0;
        for step in 0..4 {
            let mut weight = 0.0;
            for micro_batch in 0..micro {
                let trained = batches.at(step, micro_batch).expect("a batch").trained;
                let trained = trained.expect("a mask");
                let tokens = trained.rows.dim(0).expect("a list");
                count += tokens as u64;
                weight += tokens as f64 / trained.divisor / micro as f64;
            }
            assert!((weight - 1.0).abs() < 1e-12);
            let one = packed(10, 1).trained_tokens(step);
            assert_eq!(batches.trained_tokens(step), one);
        }
        // Two epochs of 20 rows.
        assert_eq!(Some(count), dataset.summary.train_trained.map(|trained| 2 * trained));
    }
}

#[test]
fn packed_runs_resume_to_the_byte_and_say_how_full_their_rows_are() {
    let place = Workplace::new();
    instructions(&place);
    place.spec("{low_rank: {rank: 6}}", "checkpoint: {every: 5, keep_last: 2}");
    let sizes = ["--set", "train.batch_size=2", "--set", "model.block_size=64"];
    let train = |run: &str, more: &[&str]| {
        let set = ["--set", SOURCE, "--set", "train.packing=true"];
        let run = ["train", "spec.yaml", "--run-dir", run];
        String::from_utf8(place.run(&[&run[..], &set, &sizes, more].concat(), 0).stderr)
    };
    let log = train("whole", &[]).expect("UTF-8");
    let line = log.lines().find(|line| line.contains("are packed into")).expect("a line");
    assert!(line.contains("54 examples are packed into 20 rows of 64 tokens"), "{line}");
    for stop in ["3", "9"] {
        let run = format!("broken-{stop}");
        train(&run, &["--stop-after", stop]).expect("UTF-8");
        train(&run, &["--resume"]).expect("UTF-8");
        let what = format!("stopped after step {stop}");
        assert_same(&place.trajectory("whole", 12), &place.trajectory(&run, 12), &what);
    }
    let other = ["train", "spec.yaml", "--run-dir", "whole", "--resume", "--set", SOURCE];
    let refused = place.run(&[&other[..], &sizes].concat(), 2);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("train.packing: true -> not set"), "{stderr}");
    let refused = place.run(&["spec", "check", "spec.yaml", "--set", "train.packing=true"], 2);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("train.packing") && stderr.contains("only instruction"), "{stderr}");
    // An adapter of a Llama whose ranks fall in the Fisher norm, the second moments of its inputs
    // taken over packed rows.
    let llama = "arch: llama, n_kv_head: 1";
    place.spec(&format!("dense, {llama}"), "");
    train("source", &[]).expect("UTF-8");
    let budget =
        "rank: {budget: {final_rank: 2, norm: fisher, every: 4, settle: 1, start: 1, freeze: 12}}";
    place.spec(&format!("{{adapter: {{rank: 6, targets: [q, v, down]}}}}, {llama}"), budget);
    let init = ["--set", "init={run: source}"];
    train("adapted", &init).expect("UTF-8");
    train("adapted-broken", &[&init[..], &["--stop-after", "6"]].concat()).expect("UTF-8");
    place.run(&["resume", "adapted-broken"], 0);
    let whole = place.trajectory("adapted", 12);
    assert_same(&whole, &place.trajectory("adapted-broken", 12), "an adapter");
}
