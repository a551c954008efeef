//! `cpufreq`: how fast each processor runs, may run, and who decides.

use super::Out;
use super::files::{Files, Trouble};

const FREQUENCIES: [(&str, &str); 6] = [
    ("cpuinfo_cur_freq", "node_cpu_frequency_hertz"),
    ("cpuinfo_min_freq", "node_cpu_frequency_min_hertz"),
    ("cpuinfo_max_freq", "node_cpu_frequency_max_hertz"),
    ("scaling_cur_freq", "node_cpu_scaling_frequency_hertz"),
    ("scaling_min_freq", "node_cpu_scaling_frequency_min_hertz"),
    ("scaling_max_freq", "node_cpu_scaling_frequency_max_hertz"),
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for name in files.names("sys/devices/system/cpu")? {
        let Some(cpu) = name.strip_prefix("cpu").filter(|n| n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty())
        else {
            continue;
        };
        let dir = format!("sys/devices/system/cpu/{name}/cpufreq");
        // The smallest of the six that every driver has.
        if files.line(&format!("{dir}/scaling_driver")).is_err()
            && files.line(&format!("{dir}/cpuinfo_min_freq")).is_err()
        {
            continue;
        }
        for (file, metric) in FREQUENCIES {
            // The processor's own word is for root only.
            if let Some(kilohertz) = files.number_if_any(&format!("{dir}/{file}")) {
                out.gauge(metric, "hertz", &[("cpu", cpu)], kilohertz * 1000.0);
            }
        }
    }
    Ok(())
}
