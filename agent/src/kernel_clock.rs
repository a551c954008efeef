//! What the kernel says of its own clock: `adjtimex(2)`, asked and never told.
//!
//! The one source that knows whether chrony, ntpd or systemd-timesyncd keeps the clock right, whichever it is. The
//! `host` collector tells it as series, the recorder marks frames with it, `satellite check` shows it. glibc asks by
//! the system call `clock_adjtime`. It needs no right, but systemd's `ProtectClock=` and some containers refuse it all
//! the same: then it is unknown. A satellite's unit keeps the clock safe by having no `CAP_SYS_TIME`.

use libc::{c_int, timex};

/// Parts per million, with 16 bits after the point: how the kernel gives frequencies.
const SCALED_PPM: f64 = 65_536.0 * 1e6;
/// Microseconds in a second.
const MICROS: f64 = 1e6;
/// Nanoseconds in a second.
const NANOS: f64 = 1e9;

/// The kernel's clock at one moment, in seconds and ratios.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelClock {
    /// Whether the kernel holds the clock to be in error: unsynchronised, or its pulse is not right.
    pub in_error: bool,
    /// The status bits (`STA_*`).
    pub status: i32,
    /// How far it is still to be moved.
    pub offset_seconds: f64,
    /// How fast it runs, 1 as the hardware says.
    pub frequency_ratio: f64,
    /// The most it may be off.
    pub error_seconds_max: f64,
    /// What it is estimated to be off.
    pub error_seconds: f64,
    /// The time constant of its phase-locked loop.
    pub loop_time_constant: f64,
    /// From one tick to the next.
    pub tick_seconds: f64,
    /// How far international atomic time is ahead of UTC; 0 where nobody has said.
    pub tai_offset_seconds: f64,
    /// The pulse per second that it follows, if any.
    pub pulse: Pulse,
}

/// A pulse per second, all 0 where there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulse {
    /// Its frequency, as far as it is off.
    pub frequency: f64,
    /// How much it jitters.
    pub jitter_seconds: f64,
    /// How long it is measured for, as a power of two.
    pub shift: f64,
    /// How much its frequency wanders.
    pub stability: f64,
    /// Times that the jitter was too large.
    pub jitters: f64,
    /// Times that it was measured.
    pub calibrations: f64,
    /// Times that a measurement failed.
    pub errors: f64,
    /// Times that the frequency wandered too far.
    pub wanders: f64,
}

impl KernelClock {
    /// Whether something keeps the clock right.
    #[must_use]
    pub fn is_synchronised(&self) -> bool {
        !self.in_error && self.status & libc::STA_UNSYNC == 0
    }

    fn of(state: c_int, from: &timex) -> Self {
        let fine = if from.status & libc::STA_NANO == 0 { MICROS } else { NANOS };
        Self {
            in_error: state == libc::TIME_ERROR,
            status: from.status,
            offset_seconds: from.offset as f64 / fine,
            frequency_ratio: 1.0 + from.freq as f64 / SCALED_PPM,
            error_seconds_max: from.maxerror as f64 / MICROS,
            error_seconds: from.esterror as f64 / MICROS,
            loop_time_constant: from.constant as f64,
            tick_seconds: from.tick as f64 / MICROS,
            tai_offset_seconds: f64::from(from.tai),
            pulse: Pulse {
                frequency: from.ppsfreq as f64 / SCALED_PPM,
                jitter_seconds: from.jitter as f64 / fine,
                shift: f64::from(from.shift),
                stability: from.stabil as f64 / SCALED_PPM,
                jitters: from.jitcnt as f64,
                calibrations: from.calcnt as f64,
                errors: from.errcnt as f64,
                wanders: from.stbcnt as f64,
            },
        }
    }
}

/// Asks the kernel. `None` where it does not answer this process.
#[must_use]
pub fn read() -> Option<KernelClock> {
    let (state, answer) = ask();
    (state >= 0).then(|| KernelClock::of(state, &answer))
}

/// The state, or -1, and the rest. No bit is set in `modes`, so that nothing is changed.
#[expect(unsafe_code, reason = "adjtimex(2) has no file and no safe wrapper")]
fn ask() -> (c_int, timex) {
    // SAFETY: a timex is integers all through; zero is a value of each.
    let mut answer: timex = unsafe { std::mem::zeroed() };
    // SAFETY: a whole timex that is this call's alone and outlives it; the kernel fills it or leaves it as it is.
    let state = unsafe { libc::adjtimex(&raw mut answer) };
    (state, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: c_int) -> timex {
        let (_, mut answer) = ask();
        (answer.status, answer.offset, answer.jitter) = (status, -1_500, 250);
        (answer.freq, answer.stabil, answer.ppsfreq) = (65_536 * 500, 65_536, -65_536);
        (answer.maxerror, answer.esterror, answer.tick) = (16_000_000, 250, 10_000);
        answer
    }

    #[test]
    fn the_bit_for_nanoseconds_scales_the_offset_and_the_jitter_and_nothing_else() {
        let coarse = KernelClock::of(libc::TIME_OK, &answer(0));
        let fine = KernelClock::of(libc::TIME_OK, &answer(libc::STA_NANO));
        assert_eq!((coarse.offset_seconds, coarse.pulse.jitter_seconds), (-0.0015, 0.00025));
        assert_eq!((fine.offset_seconds, fine.pulse.jitter_seconds), (-0.000_001_5, 0.000_000_25));
        for clock in [coarse, fine] {
            assert_eq!((clock.error_seconds_max, clock.error_seconds, clock.tick_seconds), (16.0, 0.000_25, 0.01));
            assert_eq!((clock.frequency_ratio, clock.pulse.stability, clock.pulse.frequency), (1.0005, 1e-6, -1e-6));
        }
    }

    #[test]
    fn a_clock_is_synchronised_when_neither_the_state_nor_the_bit_says_otherwise() {
        for (state, status, synchronised) in [
            (libc::TIME_OK, libc::STA_PLL | libc::STA_NANO, true),
            (libc::TIME_INS, libc::STA_PLL | libc::STA_INS, true),
            (libc::TIME_OK, libc::STA_UNSYNC, false),
            (libc::TIME_ERROR, libc::STA_UNSYNC, false),
            (libc::TIME_ERROR, libc::STA_PLL | libc::STA_CLOCKERR, false),
        ] {
            assert_eq!(KernelClock::of(state, &answer(status)).is_synchronised(), synchronised, "{state} {status}");
        }
    }

    #[test]
    fn the_kernel_s_own_answer_is_plausible_where_it_answers() {
        let Some(clock) = read() else { return };
        assert!((0.0089..=0.0111).contains(&clock.tick_seconds), "{clock:?}");
        assert!((0.999..=1.001).contains(&clock.frequency_ratio), "{clock:?}");
        assert!(!clock.in_error || !clock.is_synchronised(), "{clock:?}");
    }
}
