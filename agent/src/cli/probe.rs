//! `satellite probe DEVICE`: one poll beside the schedule, printed as a scrape would read.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::{ask, complain, say};
use crate::local::Request;
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings, device: &str, json: bool) -> anyhow::Result<ExitCode> {
    let answer = ask(settings, &Request::Probe { device: device.to_owned() }).await?;
    let failure = answer["failure"].as_str();
    let exit = if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if json {
        say(&answer.to_string());
        return Ok(exit);
    }
    let empty = Vec::new();
    let samples = answer["samples"].as_array().unwrap_or(&empty);
    for sample in samples {
        say(&line(sample));
    }
    for missing in answer["missing"].as_array().unwrap_or(&empty) {
        let text = |key: &str| missing[key].as_str().unwrap_or("").to_owned();
        complain(&format!("{} gave nothing: {}: {}", text("metric"), text("reason"), text("detail")));
    }
    if let Some(failure) = failure {
        complain(&format!("{device} gave nothing: {failure}"));
    }
    complain(&format!("{device}: {} samples in {} ms", samples.len(), answer["took_ms"]));
    Ok(exit)
}

/// The sample in the exposition format, with its unit as a comment.
fn line(sample: &Value) -> String {
    let name = sample["name"].as_str().unwrap_or("?");
    let labels: Vec<String> = sample["labels"]
        .as_object()
        .map(|labels| labels.iter().map(|(label, value)| format!("{label}={value}")).collect())
        .unwrap_or_default();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let value = sample["value"].as_str().map_or_else(|| sample["value"].to_string(), str::to_owned);
    match sample["unit"].as_str() {
        Some(unit) if !unit.is_empty() => format!("{name}{labels} {value}  # {unit}"),
        Some(_) | None => format!("{name}{labels} {value}"),
    }
}
