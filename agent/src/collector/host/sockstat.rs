//! `sockstat`: sockets in use and the memory they hold.

use super::files::{Files, Names, Trouble, number};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Sockstat {
    names: Names,
}

impl Read for Sockstat {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let page_bytes = rustix::param::page_size() as f64;
        let mut place = 0;
        for file in ["proc/net/sockstat", "proc/net/sockstat6"] {
            // Either is absent without its protocol.
            let text = match files.text(file) {
                Ok(text) => text,
                Err(trouble) if trouble.is_absent() => continue,
                Err(trouble) => return Err(trouble),
            };
            for line in text.lines() {
                let Some((protocol, pairs)) = line.split_once(':') else { continue };
                let mut words = pairs.split_ascii_whitespace();
                while let (Some(word), Some(value)) = (words.next(), words.next()) {
                    let Some(value) = number(value) else { return Err(files.malformed("a count is no number")) };
                    let name = self.names.at(place, protocol, word, || format!("node_sockstat_{protocol}_{word}"));
                    out.gauge(name, "", &[], value);
                    if word == "mem" {
                        let name = self
                            .names
                            .at(place + 1, protocol, "mem_bytes", || format!("node_sockstat_{protocol}_mem_bytes"));
                        out.gauge(name, "bytes", &[], value * page_bytes);
                    }
                    place += 2;
                }
            }
        }
        if place == 0 {
            return Err(Trouble::Absent(files.path("proc/net/sockstat")));
        }
        Ok(())
    }
}
