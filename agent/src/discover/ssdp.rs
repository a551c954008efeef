//! SSDP (UPnP Device Architecture 2.0, 1.3): one question to all, and whoever is a root device answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::LISTEN;
use super::proposal::Proposal;

const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 255, 255, 250), 1900);
const ANSWER_BYTES_MAX: usize = 4 << 10;
const ANSWERS_MAX: usize = 1_000;
const HEADERS_MAX: usize = 32;
/// Sent twice, as datagrams get lost.
const QUESTIONS: usize = 2;
const QUESTION: &str = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n\
                        ST: upnp:rootdevice\r\nUSER-AGENT: Linux UPnP/2.0 satellite\r\n\r\n";

/// Who answers on the networks of these addresses, and on which of them nobody could be asked.
pub(super) async fn listen(own: &[Ipv4Addr]) -> (Vec<Proposal>, Vec<String>) {
    let mut found: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut notes = Vec::new();
    let listening = own.iter().map(|address| async move { (address, ask(*address).await) });
    for (address, answers) in futures_util::future::join_all(listening).await {
        match answers {
            Ok(answers) => {
                for (from, server) in answers {
                    found.entry(from).or_insert(server);
                }
            }
            Err(error) => notes.push(format!("SSDP from {address}: {error}")),
        }
    }
    let propose = |(address, server): (IpAddr, String)| {
        Proposal::new(address, "ping", "SSDP", &server).with("address", address.to_string())
    };
    (found.into_iter().map(propose).collect(), notes)
}

/// Addresses that answer, and what they call themselves.
async fn ask(own: Ipv4Addr) -> io::Result<Vec<(IpAddr, String)>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_multicast_if_v4(&own)?;
    socket.set_multicast_ttl_v4(2)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from((own, 0)).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    for _ in 0..QUESTIONS {
        socket.send_to(QUESTION.as_bytes(), GROUP).await?;
    }
    let mut answers = Vec::new();
    let mut bytes = vec![0; ANSWER_BYTES_MAX];
    let until = Instant::now() + LISTEN;
    while answers.len() < ANSWERS_MAX {
        let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut bytes)).await else { break };
        match received {
            Ok((len, from)) => {
                let told = told(&bytes[..len]);
                answers.extend(told.map(|(at, server)| (at.unwrap_or(from.ip()), server)));
            }
            // A host that refuses one datagram says nothing about the others.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    Ok(answers)
}

/// Where a device says that it is, and what it calls itself, if this is an answer. One with several addresses may answer
/// from another than it is to be asked at.
fn told(bytes: &[u8]) -> Option<(Option<IpAddr>, String)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let parsed = answer.parse(bytes).ok()?;
    if parsed.is_partial() || answer.code != Some(200) {
        return None;
    }
    let header = |name: &str| answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let location = std::str::from_utf8(header("location")?.value).ok();
    let host = location.and_then(|url| reqwest::Url::parse(url).ok()?.host_str()?.parse().ok());
    Some((host, String::from_utf8_lossy(header("server").map_or(b"UPnP device", |server| server.value)).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_can_not_ask_is_a_note_and_no_end() {
        // Nobody's (RFC 5737).
        let (found, notes) = listen(&[Ipv4Addr::new(192, 0, 2, 1)]).await;
        assert!(found.is_empty() && notes.len() == 1 && notes[0].starts_with("SSDP from 192.0.2.1: "), "{notes:?}");
    }

    #[test]
    fn an_answer_says_where_and_what_it_is_and_anything_else_is_none() {
        let answer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nLocation: http://10.0.0.1:49000/d.xml\r\n\
                      SERVER: Box UPnP/1.0\r\nST: upnp:rootdevice\r\n\r\n";
        let at = Some(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(told(answer.as_bytes()), Some((at, "Box UPnP/1.0".into())));
        assert_eq!(told(answer.replace("SERVER", "X").as_bytes()), Some((at, "UPnP device".into())));
        assert_eq!(told(answer.replace("10.0.0.1", "box.lan").as_bytes()), Some((None, "Box UPnP/1.0".into())));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(100));
        for other in
            ["", "NOTIFY * HTTP/1.1\r\n\r\n", &answer[..60], &many, &answer.replace("200", "404"), "\u{0}\u{1}"]
        {
            assert_eq!(told(other.as_bytes()), None, "{other:?}");
        }
    }
}
