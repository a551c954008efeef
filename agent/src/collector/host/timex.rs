//! `timex`: how well the clock is kept, as the kernel says. A kernel that does not answer gives nothing.

use super::Out;
use super::files::{Files, Trouble};
use crate::kernel_clock;

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    files.must_be_real()?;
    let Some(clock) = kernel_clock::read() else { return Ok(()) };
    let pulse = &clock.pulse;
    for (name, unit, value) in [
        ("node_timex_sync_status", "", f64::from(u8::from(!clock.in_error))),
        ("node_timex_status", "", f64::from(clock.status)),
        ("node_timex_offset_seconds", "seconds", clock.offset_seconds),
        ("node_timex_frequency_adjustment_ratio", "ratio", clock.frequency_ratio),
        ("node_timex_maxerror_seconds", "seconds", clock.error_seconds_max),
        ("node_timex_estimated_error_seconds", "seconds", clock.error_seconds),
        ("node_timex_loop_time_constant", "", clock.loop_time_constant),
        ("node_timex_tick_seconds", "seconds", clock.tick_seconds),
        ("node_timex_tai_offset_seconds", "seconds", clock.tai_offset_seconds),
        ("node_timex_pps_frequency_hertz", "hertz", pulse.frequency),
        ("node_timex_pps_jitter_seconds", "seconds", pulse.jitter_seconds),
        // An exponent of two, whatever the name says: node_exporter gives it so.
        ("node_timex_pps_shift_seconds", "seconds", pulse.shift),
        ("node_timex_pps_stability_hertz", "hertz", pulse.stability),
    ] {
        out.gauge(name, unit, &[], value);
    }
    for (name, value) in [
        ("node_timex_pps_jitter_total", pulse.jitters),
        ("node_timex_pps_calibration_total", pulse.calibrations),
        ("node_timex_pps_error_total", pulse.errors),
        ("node_timex_pps_stability_exceeded_total", pulse.wanders),
    ] {
        out.counter(name, "", &[], value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::collector::Readings;

    fn series(root: &str) -> usize {
        let mut readings = Readings::default();
        let outcome = read(&mut Files::new(Path::new(root), 1), &mut Out { readings: &mut readings, metric: 0 });
        assert_eq!(outcome.is_err_and(|trouble| trouble.is_absent()), root != "/");
        readings.len()
    }

    #[test]
    fn the_kernel_is_asked_for_the_real_root_only() {
        assert_eq!(series("/"), if kernel_clock::read().is_some() { 17 } else { 0 });
        assert_eq!(series("/tmp"), 0, "the clock is no file below a root");
    }
}
