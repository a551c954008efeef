//! `satellite probe DEVICE`: one poll beside the schedule, printed as a scrape would read. With `--config` the devices of a
//! file are polled from here, before any relay has heard of them, under the same policy and with the same secrets.
//!
//! A device that did not give all that was asked for is a failure, also where `probe_success` tells of it.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use satellite_shared::clock::SystemClock;
use satellite_shared::config::{Device, Document};
use satellite_shared::limits;
use serde_json::{Value, json};

use crate::cli::{ask, complain, say};
use crate::collector::{self, Context, once};
use crate::local::Request;
use crate::policy::{Gate, Policy};
use crate::secrets::Keyring;
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings, device: &str, json: bool) -> anyhow::Result<ExitCode> {
    let answer = ask(settings, &Request::Probe { device: device.to_owned() }).await?;
    let exit = if is_whole(&answer) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        say(&answer.to_string());
    } else {
        print(&answer);
    }
    Ok(exit)
}

fn is_whole(answer: &Value) -> bool {
    answer["failure"].is_null() && answer["missing"].as_array().is_none_or(Vec::is_empty)
}

/// A file of devices, read with the rights of whoever typed its name; `-` is stdin.
#[derive(Debug)]
pub(crate) struct DeviceFile {
    name: String,
    text: String,
}

impl DeviceFile {
    /// Reads it.
    ///
    /// # Errors
    /// Which file, and what the system said.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let most = limits::CONFIG_BYTES_MAX as u64 + 1;
        let mut text = String::new();
        let read = match name.as_str() {
            "stdin" => std::io::stdin().lock().take(most).read_to_string(&mut text),
            _ => std::fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)),
        };
        read.with_context(|| name.clone())?;
        Ok(Self { name, text })
    }
}

/// Polls each device of a file once, or the one of this name.
pub(crate) async fn run_file(
    settings: &Settings,
    DeviceFile { name, text }: &DeviceFile,
    only: Option<&str>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let (_, document) = Document::parse_text(text).map_err(|problem| anyhow::anyhow!("{name}: {problem}"))?;
    let mut exit = ExitCode::SUCCESS;
    for problem in &document.problems {
        complain(&problem.to_string());
        exit = ExitCode::FAILURE;
    }
    let devices: Vec<&Device> =
        document.devices.iter().filter(|device| only.is_none_or(|only| device.name.as_str() == only)).collect();
    let which = only.map_or_else(String::new, |only| format!(" `{only}`"));
    anyhow::ensure!(!devices.is_empty(), "{name}: no device{which} in it");
    let gate = Gate::new(Policy::load(&settings.policy)?, Arc::new(SystemClock));
    let context = Context::new(Arc::new(gate), Keyring::new(&settings.state_dir), "/");
    let mut answers = Vec::new();
    for device in devices {
        let answer = match collector::kind_of(device).and_then(|kind| (kind.build)(device, &context)) {
            Ok(mut built) => once::poll(device, &mut built).await.document(device),
            Err(problem) => json!({ "device": device.name, "failure": problem.to_string() }),
        };
        if !is_whole(&answer) {
            exit = ExitCode::FAILURE;
        }
        if !json {
            print(&answer);
        }
        answers.push(answer);
    }
    if json {
        say(&Value::from(answers).to_string());
    }
    Ok(exit)
}

fn print(answer: &Value) {
    let device = answer["device"].as_str().unwrap_or("?");
    let empty = Vec::new();
    let samples = answer["samples"].as_array().unwrap_or(&empty);
    for sample in samples {
        say(&line(sample));
    }
    for missing in answer["missing"].as_array().unwrap_or(&empty) {
        let text = |key: &str| missing[key].as_str().unwrap_or("");
        let metric = Some(text("metric")).filter(|name| !name.is_empty()).unwrap_or(device);
        complain(&format!("{metric} gave nothing: {}: {}", text("reason"), text("detail")));
    }
    if let Some(failure) = answer["failure"].as_str() {
        complain(&format!("{device} gave nothing: {failure}"));
    }
    if let Some(took) = answer["took_ms"].as_u64() {
        complain(&format!("{device}: {} samples in {took} ms", samples.len()));
    }
}

/// The sample in the exposition format, with its unit as a comment.
fn line(sample: &Value) -> String {
    let name = sample["name"].as_str().unwrap_or("?");
    let labels: Vec<String> = sample["labels"]
        .as_object()
        .map(|labels| {
            labels.iter().map(|(label, value)| format!("{label}={:?}", value.as_str().unwrap_or(""))).collect()
        })
        .unwrap_or_default();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let value = sample["value"].as_str().map_or_else(|| sample["value"].to_string(), str::to_owned);
    match sample["unit"].as_str() {
        Some(unit) if !unit.is_empty() => format!("{name}{labels} {value}  # {unit}"),
        Some(_) | None => format!("{name}{labels} {value}"),
    }
}
