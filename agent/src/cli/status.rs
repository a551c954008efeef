//! `satellite status`: everything a person asks first, on one screen.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::{ask, say, span, time};
use crate::local::Request;
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let status = ask(settings, &Request::Status).await?;
    if json {
        say(&status.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let now_ms = status["clock_ms"].as_i64().unwrap_or(0);
    say(&format!("satellite {}, up {}", text(&status["version"]), span(number(&status["up_seconds"]) * 1000)));
    say_lease(&status, now_ms);
    say(&format!("link     {}", link(&status["link"], now_ms)));
    let (due, stored, explained) = (number(&status["due"]), number(&status["stored"]), number(&status["explained"]));
    say(&format!("samples  {due} due since start = {stored} recorded + {explained} explained by gaps"));
    say_buffer(&status, now_ms);
    say(&format!("config   version {}", status["config_version"]));
    say_devices(&status, now_ms);
    Ok(ExitCode::SUCCESS)
}

fn say_lease(status: &Value, now_ms: i64) {
    let lease = &status["lease"];
    if lease.is_null() {
        say("lease    needs a lease: run sudo satellite lease set");
        return;
    }
    let ends_ms = number(&lease["certificate_ends_ms"]);
    let left = if ends_ms > now_ms { format!("ends in {}", span(ends_ms - now_ms)) } else { "has ended".into() };
    say(&format!(
        "lease    {} ({}) at {}; certificate {} {left}, renews {}",
        text(&lease["satellite"]),
        text(&lease["name"]),
        text(&lease["relay"]),
        lease["certificate_generation"],
        time(number(&lease["certificate_renews_ms"])),
    ));
}

fn say_buffer(status: &Value, now_ms: i64) {
    let buffer = &status["buffer"];
    let oldest =
        buffer["oldest_ms"].as_i64().map_or("empty".to_owned(), |ms| format!("oldest {} ago", span(now_ms - ms)));
    say(&format!(
        "buffer   {}: {} records, {:.1} of {} MiB, {oldest}, {} MB written a day; can stay offline until {}",
        text(&buffer["health"]),
        buffer["records"],
        mib(&buffer["bytes"]),
        number(&buffer["bytes_max"]) >> 20,
        buffer["mb_written_per_day"],
        time(number(&status["offline_until_ms"])),
    ));
    if let Some(why) = buffer["why"].as_str() {
        say(&format!("         {why}"));
    }
}

fn say_devices(status: &Value, now_ms: i64) {
    let empty = Vec::new();
    let devices = status["devices"].as_array().unwrap_or(&empty);
    if devices.is_empty() {
        say("devices  none: the relay's configuration names none yet (satellite-relay config set)");
        return;
    }
    say(&format!(
        "devices  {:<24} {:<11} {:<12} {:>8} {:>8} {:>8}",
        "name", "collector", "outcome", "age", "took ms", "samples"
    ));
    for device in devices {
        let age = device["polled_ms"].as_i64().map_or("-".to_owned(), |ms| span(now_ms - ms));
        say(&format!(
            "         {:<24} {:<11} {:<12} {age:>8} {:>8} {:>8}  {}",
            text(&device["device"]),
            text(&device["collector"]),
            text(&device["outcome"]),
            number(&device["took_ms"]),
            number(&device["samples"]),
            text(&device["detail"]),
        ));
    }
}

fn link(link: &Value, now_ms: i64) -> String {
    let state = text(&link["state"]);
    let since = link["since_ms"].as_i64().map_or(String::new(), |ms| format!(" for {}", span(now_ms - ms)));
    let why = link["why"].as_str().map_or(String::new(), |why| format!(": {why}"));
    let relay = link["relay"].as_str().map_or(String::new(), |relay| format!(" to {relay}"));
    format!("{state}{relay}{since}{why}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(value: &Value) -> f64 {
    number(value) as f64 / f64::from(1 << 20)
}
