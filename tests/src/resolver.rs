//! A name server that answers each question with what the test wants, and another answer the next time.
//!
//! Enough of RFC 1035 for a stub resolver that asks for A and AAAA.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

const A: u16 = 1;
const AAAA: u16 = 28;
const NO_SUCH_NAME: u8 = 3;

/// The answers of one name: one list after the other, in a ring.
type Answers = BTreeMap<String, Vec<Vec<IpAddr>>>;

/// The name server.
#[derive(Debug)]
pub struct Resolver {
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
    ended: Arc<AtomicBool>,
}

impl Resolver {
    /// Answers at this address from now on.
    ///
    /// # Errors
    /// When it can't listen there.
    pub fn start(at: SocketAddr, names: &[(&str, &[&[&str]])]) -> Result<Self> {
        let mut answers = Answers::new();
        for (name, turns) in names {
            let read = |turn: &&[&str]| turn.iter().map(|ip| Ok(ip.parse()?)).collect::<Result<Vec<IpAddr>>>();
            answers.insert((*name).to_owned(), turns.iter().map(read).collect::<Result<_>>()?);
        }
        let socket = UdpSocket::bind(at).with_context(|| at.to_string())?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let resolver = Self { asked: Arc::default(), ended: Arc::default() };
        let (asked, ended) = (Arc::clone(&resolver.asked), Arc::clone(&resolver.ended));
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while !ended.load(Ordering::Relaxed) {
                let Ok((read, from)) = socket.recv_from(&mut question) else { continue };
                let answer =
                    answer(&question[..read], &answers, &mut asked.lock().unwrap_or_else(PoisonError::into_inner));
                // A question that is none gets no answer; a client that went away gets none either.
                drop(answer.map(|answer| socket.send_to(&answer, from)));
            }
        });
        Ok(resolver)
    }

    /// How often a name was asked for, A and AAAA together.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn answer(question: &[u8], names: &Answers, asked: &mut BTreeMap<String, usize>) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    while let Some(&length) = question.get(at)
        && length > 0
    {
        let label = question.get(at + 1..at + 1 + usize::from(length))?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + usize::from(length);
    }
    let kind = u16::from_be_bytes(question.get(at + 1..at + 3)?.try_into().ok()?);
    let name = labels.join(".");
    let turns = names.get(&name);
    // Both families are asked for each look-up: each pair is a turn.
    let count = asked.entry(name).or_default();
    let turn = turns.and_then(|turns| turns.get((*count / 2) % turns.len().max(1)));
    *count += 1;
    let wanted = |ip: &&IpAddr| (kind == A && ip.is_ipv4()) || (kind == AAAA && ip.is_ipv6());
    let found: Vec<&IpAddr> = turn.into_iter().flatten().filter(wanted).collect();
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x84, if turns.is_none() { NO_SUCH_NAME } else { 0 }]);
    answer.extend([0, 1, 0, u8::try_from(found.len()).ok()?, 0, 0, 0, 0]);
    answer.extend(question.get(12..at + 5)?);
    for ip in found {
        let bytes = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        // Class IN, to be forgotten at once.
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
        answer.extend(bytes);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_another_address_at_the_next_look_up() {
        let names = Answers::from([("a.test".to_owned(), vec![vec!["10.0.0.1".parse().unwrap()], vec![]])]);
        let mut question = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 4];
        question.extend(b"TEST\0\0\x01\0\x01");
        let mut asked = BTreeMap::new();
        let counts: Vec<u8> = (0..4).map(|_| answer(&question, &names, &mut asked).unwrap()[7]).collect();
        assert_eq!(counts, [1, 1, 0, 0]);
        assert!(answer(&question, &names, &mut asked).unwrap().ends_with(&[0, 4, 10, 0, 0, 1]));
        question[13] = b'b';
        assert_eq!(answer(&question, &names, &mut asked).unwrap()[3], NO_SUCH_NAME);
        assert_eq!(answer(&[], &names, &mut asked), None);
    }
}
