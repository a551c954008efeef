//! `satellite gaps`: what was due lately and is not a record, with its reason.

use std::process::ExitCode;

use satellite_shared::gap::Gap;

use crate::cli::{ask, say, time};
use crate::local::Request;
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let answer = ask(settings, &Request::Gaps).await?;
    if json {
        say(&answer.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let gaps: Vec<Gap> = serde_json::from_value(answer["gaps"].clone())?;
    if gaps.is_empty() {
        say("no gap since the satellite started: everything that was due is a record");
    }
    for gap in gaps {
        let device = gap.device.as_ref().map_or("*", |device| device.as_str());
        let metric = gap.metric.as_deref().unwrap_or("*");
        say(&format!(
            "{}  {}  {device}/{metric}  {} samples  {}: {}",
            time(gap.from_ms),
            time(gap.to_ms),
            gap.count,
            gap.reason.as_str(),
            gap.detail
        ));
    }
    Ok(ExitCode::SUCCESS)
}
