//! Data of the Hugging Face Hub, from a server on this machine that answers as the Hub does.

#![cfg(feature = "datasets")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};
use support::Workplace;

/// A data set called `o/n` on a Hub that wants a token for it.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The commit of `main` and of `v1`, and the files of each commit.
    main: String,
    v1: String,
    files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// First lines of what was asked.
    asked: Vec<String>,
    is_down: bool,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let of_server = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_server);
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Self { address, state }
    }

    /// Makes a commit of these files what `main` is.
    fn commit(&self, commit: char, files: &[(&str, &[u8])]) -> String {
        let commit = commit.to_string().repeat(40);
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec()));
        let mut state = self.state.lock().unwrap();
        state.main = commit.clone();
        state.files.insert(commit.clone(), files.collect());
        commit
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let head: Vec<String> =
        lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(first) = head.first() else { return };
    let mut state = state.lock().unwrap();
    state.asked.push(first.clone());
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let has_token = head.iter().any(|line| line.to_lowercase() == "authorization: bearer secret");
    let (status, more, body) = match () {
        () if state.is_down => ("503 Service Unavailable", String::new(), Vec::new()),
        () if !has_token => ("401 Unauthorized", String::new(), b"{\"error\": \"no\"}".to_vec()),
        () => content(&state, path).unwrap_or(("404 Not Found", String::new(), Vec::new())),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n");
    let body = if method == "HEAD" { &[][..] } else { &body };
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// Status, further headers and body of a path that there is.
fn content(state: &State, path: &str) -> Option<(&'static str, String, Vec<u8>)> {
    if let Some(revision) = path.strip_prefix("/api/datasets/o/n/revision/") {
        let sha = match revision {
            "main" => &state.main,
            "v1" => &state.v1,
            _ => return None,
        };
        let body = format!("{{\"id\": \"o/n\", \"sha\": \"{sha}\"}}").into_bytes();
        return Some(("200 OK", String::new(), body));
    }
    if let Some(rest) = path.strip_prefix("/api/datasets/o/n/tree/") {
        let (commit, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let mut entries: Vec<_> = state.files.get(commit)?.iter().collect();
        entries.retain(|(name, _)| name.starts_with(folder));
        if entries.is_empty() {
            return None;
        }
        let entry = |(name, bytes): (&String, &Vec<u8>)| {
            let size = bytes.len();
            serde_json::json!({"type": "file", "oid": "0", "size": size, "path": name})
        };
        let body = serde_json::Value::Array(entries.into_iter().map(entry).collect()).to_string();
        return Some(("200 OK", String::new(), body.into_bytes()));
    }
    let rest = path.strip_prefix("/datasets/o/n/resolve/")?;
    let (commit, name) = rest.split_once('/')?;
    let bytes = state.files.get(commit)?.get(name)?;
    let etag = blake3::hash(bytes).to_hex();
    let headers = format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\n");
    Some(("200 OK", headers, bytes.clone()))
}

/// Prepares a source and expects this exit code.
fn prepare(place: &Workplace, hub: &Hub, source: &str, more: &[(&str, &str)], code: i32) -> Output {
    let yaml = format!(
        "name: small\n\
         model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, weights: dense}}\n\
         train: {{max_steps: 2, batch_size: 2}}\n\
         schedule: {{constant: {{warmup_steps: 0}}}}\n\
         data: {{source: {source}, tokenizer: bytes}}\n"
    );
    std::fs::write(place.path("spec.yaml"), yaml).unwrap();
    let mut command = place.lrpt(&["data", "prepare", "spec.yaml"]);
    for variable in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"] {
        command.env_remove(variable);
    }
    command.env("HF_HOME", place.path("hf")).env("HF_ENDPOINT", &hub.address);
    command.env("HF_TOKEN", "secret").env("NO_PROXY", "*").envs(more.iter().copied());
    let output = command.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The summaries of what is prepared.
fn prepared(place: &Workplace) -> Vec<serde_json::Value> {
    let output = place.run(&["data", "list", "--json"], 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(from: usize) -> Vec<u8> {
    (from..from + 20)
        .map(|n| format!("{{\"text\": \"document {n}\"}}\n"))
        .collect::<String>()
        .into()
}

#[test]
fn files_are_fetched_once_and_the_commit_is_kept() {
    let (place, hub) = (Workplace::new(), Hub::start());
    let rows = include_bytes!("support/rows-zstd.parquet");
    let (a, b) = (lines(0), lines(20));
    let files = [
        ("data/a.jsonl", &a[..]),
        ("data/b.jsonl", &b),
        ("data/b-again.jsonl", &b),
        ("data/.hidden.jsonl", &a),
        ("a.txt", b"some text"),
        ("rows.parquet", rows),
    ];
    let commit = hub.commit('a', &files);
    let source = "{jsonl: {train: ['hf://datasets/o/n/data/*.jsonl']}}";
    let first = said(&prepare(&place, &hub, source, &[], 0));
    assert!(first.contains(&format!("hf://datasets/o/n@{commit}/data/*.jsonl")), "{first}");
    let asked = hub.asked();
    assert!(
        asked.iter().all(|line| !line.contains("hidden") && !line.contains("rows")),
        "{asked:?}"
    );

    // The same files on this machine are the same data.
    std::fs::write(place.path("a.jsonl"), &a).unwrap();
    std::fs::write(place.path("b.jsonl"), &b).unwrap();
    std::fs::write(place.path("c.jsonl"), &b).unwrap();
    prepare(&place, &hub, "{jsonl: {train: [a.jsonl, b.jsonl, c.jsonl]}}", &[], 0);
    assert_eq!((prepared(&place).len(), hub.asked().len()), (1, 0));

    // What the cache holds is not fetched again; of a commit not even the list is.
    prepare(&place, &hub, source, &[], 0);
    assert!(hub.asked().iter().all(|line| line.contains("/api/")), "only lists are asked for");
    let pinned = format!("{{jsonl: {{train: ['hf://datasets/o/n@{commit}/data/a.jsonl']}}}}");
    prepare(&place, &hub, &pinned, &[], 0);
    assert_eq!(hub.asked(), [""; 0]);

    // Text and Parquet, another revision, and a main that has moved on.
    prepare(&place, &hub, "{parquet: {train: ['hf://datasets/o/n/rows.parquet']}}", &[], 0);
    hub.state.lock().unwrap().v1 = commit;
    let moved = hub.commit('b', &[("a.txt", b"another text")]);
    let text = |revision: &str| format!("{{text: {{path: 'hf://datasets/o/n{revision}/a.txt'}}}}");
    let old = said(&prepare(&place, &hub, &text("@v1"), &[], 0));
    let new = said(&prepare(&place, &hub, &text(""), &[], 0));
    assert!(old.contains(&"a".repeat(40)) && new.contains(&moved), "{old}{new}");
    assert_eq!(prepared(&place).len(), 5);
}

#[test]
fn without_the_hub_the_cache_is_used() {
    let (place, hub) = (Workplace::new(), Hub::start());
    let commit = hub.commit('a', &[("a.txt", b"some text"), ("b.txt", b"and more")]);
    let source = "{text: {path: 'hf://datasets/o/n/*.txt'}}";
    let offline = [("HF_HUB_OFFLINE", "1")];
    let none = said(&prepare(&place, &hub, source, &offline, 1));
    assert!(none.contains("HF_HUB_OFFLINE is set, and the cache"), "{none}");
    assert!(none.contains("hf download --repo-type dataset o/n --revision main"), "{none}");
    prepare(&place, &hub, source, &[], 0);
    hub.asked();
    let cached = said(&prepare(&place, &hub, source, &offline, 0));
    assert!(cached.contains("HF_HUB_OFFLINE") && cached.contains(&commit), "{cached}");
    assert_eq!(hub.asked(), [""; 0]);
    hub.state.lock().unwrap().is_down = true;
    let down = said(&prepare(&place, &hub, source, &[], 0));
    assert!(down.contains(&hub.address) && down.contains("using what the cache holds"), "{down}");
    let other = said(&prepare(&place, &hub, "{text: {path: 'hf://datasets/o/n/c.txt'}}", &[], 1));
    assert!(other.contains(&hub.address) && other.contains("check the network"), "{other}");
    assert_eq!(prepared(&place).len(), 1);
}

#[test]
fn what_the_hub_refuses_is_said_with_its_address() {
    let (place, hub) = (Workplace::new(), Hub::start());
    hub.commit('a', &[("a.txt", b"some text")]);
    let refused = |path: &str, token: &str, code: i32, expected: &str| {
        let source = format!("{{text: {{path: '{path}'}}}}");
        let said = said(&prepare(&place, &hub, &source, &[("HF_TOKEN", token)], code));
        assert!(said.contains(expected), "{path}: {said}");
        assert!(code == 2 || said.contains(&format!("{}/datasets/o/", hub.address)), "{said}");
    };
    refused("hf://datasets/o/n/a.txt", "wrong", 1, "set HF_TOKEN to a token that may read it");
    refused("hf://datasets/o/m/a.txt", "secret", 1, "no such repository or revision");
    refused("hf://datasets/o/n@v9/a.txt", "secret", 1, "no such repository or revision");
    refused("hf://datasets/o/n/b.txt", "secret", 2, "no file of ");
    refused("hf://datasets/o/n/c/*.txt", "secret", 1, "no such commit, folder or file");
    refused("hf://datasets/o/n", "secret", 2, "names no file; write `hf://datasets/OWNER/NAME@");
    assert!(prepared(&place).is_empty());
}
