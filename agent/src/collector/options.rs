//! A collector's own keys, read strictly: what is misspelled would otherwise be ignored for years.

use satellite_shared::config::{Device, Problem};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Keys of one device or metric. Which of them is wrong is found by trying, so their number is bounded.
const KEYS_MAX: usize = 64;

/// Reads the options of a device or a metric; `path` is where they stand, `device.nas`.
pub(crate) fn read<T: DeserializeOwned>(options: &Map<String, Value>, path: &str) -> Result<T, Problem> {
    if options.len() > KEYS_MAX {
        return Err(problem(path, format!("{} keys, more than {KEYS_MAX}", options.len())));
    }
    let try_read = |options: &Map<String, Value>| T::deserialize(Value::Object(options.clone()));
    let Err(error) = try_read(options) else {
        return try_read(options).map_err(|error| problem(path, error.to_string()));
    };
    // serde says what is wrong but not under which key: it is the one without which something else is wrong.
    let said = error.to_string();
    let culprit = options.keys().find(|key| {
        let mut others = options.clone();
        others.remove(key.as_str());
        try_read(&others).err().is_none_or(|other| other.to_string() != said)
    });
    match culprit {
        Some(key) => Err(problem(&format!("{path}.{}", key.chars().take(80).collect::<String>()), said)),
        None => Err(problem(path, said)),
    }
}

/// Refuses `[[device.metric]]` for a collector that gives what it gives.
pub(crate) fn no_metrics(device: &Device) -> Result<(), Problem> {
    if device.metrics.is_empty() {
        return Ok(());
    }
    let reason = format!("`{}` takes no list of metrics: remove the [[device.metric]] tables", device.collector);
    Err(problem(&format!("device.{}.metric", device.name), reason))
}

/// A problem at a place.
pub(crate) fn problem(path: &str, reason: impl Into<String>) -> Problem {
    Problem { path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read by serde")]
    struct Options {
        address: String,
        count: Option<u8>,
    }

    #[test]
    fn the_key_that_is_wrong_is_named_with_what_there_is() {
        let check = |json: &str, path: &str, reason: &str| {
            let problem = read::<Options>(&serde_json::from_str(json).unwrap(), "device.a").unwrap_err();
            assert_eq!(problem.path, path, "{json}");
            assert!(problem.reason.contains(reason), "{json}: {problem}");
        };
        check(r#"{"address": "x", "adress": "y"}"#, "device.a.adress", "expected `address` or `count`");
        check(r#"{"address": 3}"#, "device.a.address", "expected a string");
        check(r#"{"address": "x", "count": 1000}"#, "device.a.count", "expected u8");
        let many: Vec<String> = (0..70).map(|n| format!("\"k{n}\": {n}")).collect();
        check(&format!("{{{}}}", many.join(",")), "device.a", "70 keys, more than 64");
        check("{}", "device.a", "missing field `address`");
        assert_eq!(read::<Options>(&serde_json::from_str(r#"{"address": "x"}"#).unwrap(), "").unwrap().address, "x");
    }
}
