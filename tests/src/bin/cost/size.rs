//! Row `size`: what an installation puts on the disk.

use anyhow::{Context, Result};
use satellite_tests::programs;

use crate::Plan;
use crate::rivals::Rival;
use crate::table::{OURS, Report};

pub(crate) const ROWS: [&str; 1] = ["size"];

const MIB: f64 = 1_048_576.0;

pub(crate) fn measure(plan: Plan, report: &mut Report, _: &dyn Fn(&str) -> bool) -> Result<()> {
    let satellite = &programs::programs()?.satellite;
    let bytes = satellite.metadata().with_context(|| satellite.display().to_string())?.len();
    report.add("size", OURS, vec![bytes as f64 / MIB], "the one binary, as packaged; all else is text");
    if !plan.peers {
        return Ok(());
    }
    for rival in [Rival::NodeExporter, Rival::Vmagent, Rival::PrometheusAgent, Rival::Collectd] {
        match rival.find() {
            Ok(file) => {
                let size = std::fs::metadata(&file)?.len();
                report.add("size", rival.name(), vec![size as f64 / MIB], format!("its binary, {}", rival.version()));
            }
            Err(why) => report.skipped("size", rival.name(), &format!("{why:#}")),
        }
    }
    Ok(())
}
