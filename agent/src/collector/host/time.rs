//! `time`: the wall clock, its zone, and what the kernel counts time with.

use chrono::{Local, Offset, TimeZone};
use satellite_shared::clock::{Clock, SystemClock};

use super::files::{Files, Stamp, Trouble};
use super::{Out, Read};

const ZONE: &str = "etc/localtime";
const CLOCKSOURCES: &str = "sys/devices/system/clocksource";

/// The zone's rule; read again when the file is another.
#[derive(Default)]
pub(super) struct Time {
    read: Option<Stamp>,
    /// `None` where the file has none.
    rule: Option<String>,
}

impl Read for Time {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let stamp = files.stamp(ZONE);
        if stamp.is_none() || stamp != self.read {
            let text = files.text(ZONE).ok();
            self.rule = text.and_then(|text| Some(text.trim_end().rsplit_once('\n')?.1.to_owned()));
            self.read = stamp;
        }
        let rule = if self.read.is_some() { Some(self.rule.as_deref()) } else { None };
        clock(rule, files, out);
        Ok(())
    }
}

/// `rule` is `None` where no zone is set, and holds `None` where the zone has no rule.
fn clock(rule: Option<Option<&str>>, files: &mut Files, out: &mut Out<'_>) {
    let wall_ms = SystemClock.now().wall_ms;
    out.gauge("node_time_seconds", "seconds", &[], wall_ms as f64 / 1000.0);
    let offset = Local.timestamp_millis_opt(wall_ms).single().map_or(0, |time| time.offset().fix().local_minus_utc());
    let zone = zone_name(rule, offset);
    out.gauge("node_time_zone_offset_seconds", "seconds", &[("time_zone", &zone)], f64::from(offset));
    for name in files.names(CLOCKSOURCES).unwrap_or_default() {
        let Some(device) = name.strip_prefix("clocksource") else { continue };
        let dir = format!("{CLOCKSOURCES}/{name}");
        for source in files.line_if_any(&format!("{dir}/available_clocksource")).unwrap_or_default().split(' ') {
            let labels = [("device", device), ("clocksource", source)];
            out.gauge("node_time_clocksource_available_info", "", &labels, 1.0);
        }
        if let Some(source) = files.line_if_any(&format!("{dir}/current_clocksource")) {
            let labels = [("device", device), ("clocksource", &source)];
            out.gauge("node_time_clocksource_current_info", "", &labels, 1.0);
        }
    }
}

/// What the zone is called at this offset: the rule at the end of `/etc/localtime` names both halves of the year.
fn zone_name(rule: Option<Option<&str>>, offset: i32) -> String {
    if rule.is_none() && offset == 0 {
        return "UTC".to_owned();
    }
    rule.flatten().and_then(|rule| name_in_rule(rule, offset)).unwrap_or_else(|| {
        let minutes = offset.abs() / 60;
        format!("{}{:02}{:02}", if offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
    })
}

/// `CET-1CEST,M3.5.0,M10.5.0/3`: a name, how far west it is, the summer's name, and how far, or an hour east of that.
fn name_in_rule(rule: &str, offset: i32) -> Option<String> {
    let (standard, rest) = take_name(rule)?;
    let (west, rest) = take_offset(rest)?;
    if -west == offset {
        return Some(standard.to_owned());
    }
    let (summer, rest) = take_name(rest)?;
    let west = take_offset(rest).map_or(west - 3600, |(west, _)| west);
    (-west == offset).then(|| summer.to_owned())
}

fn take_name(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('<') {
        return rest.split_once('>');
    }
    let end = text.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(text.len());
    (end >= 3).then(|| text.split_at(end))
}

fn take_offset(text: &str) -> Option<(i32, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-:".contains(c))).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let mut seconds = 0;
    for (part, unit) in digits.split(':').zip([3600, 60, 1]) {
        seconds += part.parse::<i32>().ok().filter(|part| *part < 168)? * unit;
    }
    Some((sign * seconds, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_has_the_name_of_its_half_of_the_year() {
        for (rule, offset, name) in [
            ("UTC0", 0, Some("UTC")),
            ("CET-1CEST,M3.5.0,M10.5.0/3", 3600, Some("CET")),
            ("CET-1CEST,M3.5.0,M10.5.0/3", 7200, Some("CEST")),
            ("EST5EDT,M3.2.0,M11.1.0", -14400, Some("EDT")),
            ("<+0330>-3:30", 12600, Some("+0330")),
            ("<+1030>-10:30<+11>-11,M10.1.0,M4.1.0", 39600, Some("+11")),
            ("CET-1", 7200, None),
            ("", 0, None),
            ("A", 0, None),
            ("CET-99999999999", 0, None),
        ] {
            assert_eq!(name_in_rule(rule, offset).as_deref(), name, "{rule}");
        }
    }
}
