//! The credential way as satellites and strangers walk it, with a clock that is turned.

use futures_util::future::join_all;
use rcgen::{CertificateParams, KeyPair, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use satellite_shared::clock::ManualClock;

use super::*;
use crate::data_dir::DataDir;
use crate::registry::{CertificateState, NewLease};

const NOW_MS: i64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const WEEK_MS: u64 = 7 * 24 * HOUR_MS;
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct House {
    registry: Registry,
    clock: Arc<ManualClock>,
    enrolment: Enrolment,
    _dir: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let authority = Authority::load_or_create(&DataDir::open(dir.path()).unwrap(), NOW_MS).unwrap();
        let clock = Arc::new(ManualClock::new(NOW_MS, 0));
        let enrolment = Enrolment::new(
            registry.clone(),
            authority,
            Arc::<ManualClock>::clone(&clock),
            SessionUrl::HostOfLease { port: 8444 },
            &Limits { refusal_after: Duration::ZERO, ..Limits::default() },
        );
        Self { registry, clock, enrolment, _dir: dir }
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms
    }

    async fn lease(&self, name: &str, bits: u8) -> (LeaseId, Token) {
        self.lease_with(name, bits, false).await
    }

    async fn lease_with(&self, name: &str, bits: u8, replace: bool) -> (LeaseId, Token) {
        let token = Token::from_bits(TokenKind::Lease, [bits; 32]);
        let lease = NewLease {
            id: LeaseId::from_bits([bits; 10]),
            satellite: SatelliteId::from_bits([bits; 10]),
            name: name.into(),
            token_sha256: sha256_hex(token.expose().as_bytes()),
            relay_url: "https://[::1]:8443".into(),
            now_ms: self.now_ms(),
            expires_at_ms: self.now_ms() + 3_600_000,
            replace,
        };
        self.registry.create_lease(&lease).await.unwrap();
        (lease.id, token)
    }

    async fn enrol(&self, (lease, token): &(LeaseId, Token), key: &KeyPair) -> Result<Enrolled, Refusal> {
        self.enrolment.enrol(&request(lease, token, &csr(key)), STRANGER).await
    }

    /// A satellite that has connected with its first certificate.
    async fn satellite(&self, key: &KeyPair) -> Enrolled {
        let enrolled = self.enrol(&self.lease("nas", 1).await, key).await.unwrap();
        self.registry.certificate_used(&enrolled.satellite, 1, self.now_ms()).await.unwrap();
        enrolled
    }

    async fn recover(
        &self,
        satellite: &SatelliteId,
        generation: u64,
        old: &KeyPair,
        new: &KeyPair,
    ) -> Result<Enrolled, Refusal> {
        let nonce = self.enrolment.challenge(ChallengeRequest { satellite: satellite.clone() }).nonce;
        self.enrolment.recover(&recovery(satellite, &nonce, generation, old, new)).await
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn csr(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

fn request(lease: &LeaseId, token: &Token, csr: &str) -> EnrolRequest {
    EnrolRequest {
        lease: lease.clone(),
        token: token.clone(),
        csr: csr.into(),
        hostname: "nas\u{1b}[31m".into(),
        agent_version: "0.1.0".into(),
    }
}

fn recovery(satellite: &SatelliteId, nonce: &str, generation: u64, old: &KeyPair, new: &KeyPair) -> RecoverRequest {
    let csr = csr(new);
    let text = RecoverRequest::signed_text(satellite, nonce, generation, &csr);
    let signature = data_encoding::BASE64URL_NOPAD.encode(&old.sign(text.as_bytes()).unwrap());
    RecoverRequest { satellite: satellite.clone(), nonce: nonce.into(), generation, csr, signature }
}

fn serial(chain: &str) -> String {
    let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    hex(x509_parser::parse_x509_certificate(&der).unwrap().1.raw_serial())
}

fn refused(answer: Result<Enrolled, Refusal>) -> String {
    answer.unwrap_err().problem().code
}

#[tokio::test]
async fn a_lease_and_a_key_give_everything_that_streaming_takes() {
    let house = House::new().await;
    let enrolled = house.enrol(&house.lease("nas", 1).await, &key()).await.unwrap();
    assert_eq!((enrolled.name.as_str(), enrolled.generation), ("nas", 1));
    assert_eq!(enrolled.session_url, "wss://[::1]:8444");
    assert!((enrolled.renew_after_ms..).contains(&enrolled.not_after_ms));
    let satellite = house.registry.satellite(&enrolled.satellite).await.unwrap().unwrap();
    assert!(satellite.token_matches(&enrolled.token));
    assert_eq!(satellite.lease, enrolled.lease);
    assert_eq!(satellite.hostname.as_deref(), Some("nas[31m"), "nothing that moves a terminal");
    let certificate = house.registry.certificate_of(&enrolled.satellite, 1).await.unwrap().unwrap();
    assert_eq!(certificate.serial_hex, serial(&enrolled.chain));
    assert_eq!(certificate.state, CertificateState::PendingUse);
}

#[tokio::test]
async fn a_used_lease_enrols_no_other_key() {
    let house = House::new().await;
    let lease = house.lease("nas", 1).await;
    let enrolled = house.enrol(&lease, &key()).await.unwrap();
    assert_eq!(refused(house.enrol(&lease, &key()).await), "lease_used");
    assert_eq!(house.registry.certificates(&enrolled.satellite).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_key_gets_its_certificate_again_with_a_new_token_for_ten_minutes() {
    let house = House::new().await;
    let (lease, key) = (house.lease("nas", 1).await, key());
    let first = house.enrol(&lease, &key).await.unwrap();
    house.clock.advance(9 * 60_000);
    let second = house.enrol(&lease, &key).await.unwrap();
    assert_eq!((&first.chain, first.generation), (&second.chain, second.generation));
    let satellite = house.registry.satellite(&first.satellite).await.unwrap().unwrap();
    assert!(satellite.token_matches(&second.token) && !satellite.token_matches(&first.token));
    house.clock.advance(60_000);
    assert_eq!(refused(house.enrol(&lease, &key).await), "lease_used");
}

#[tokio::test]
async fn an_expired_lease_enrols_nobody() {
    let house = House::new().await;
    let lease = house.lease("nas", 1).await;
    house.clock.advance(HOUR_MS);
    assert_eq!(refused(house.enrol(&lease, &key()).await), "lease_expired");
}

#[tokio::test]
async fn an_unknown_lease_and_a_wrong_token_are_answered_alike() {
    let house = House::new().await;
    let (lease, token) = house.lease("nas", 1).await;
    let wrong = Token::from_bits(TokenKind::Lease, [9; 32]);
    let unknown = house.enrol(&(LeaseId::from_bits([9; 10]), token), &key()).await.unwrap_err();
    let mistaken = house.enrol(&(lease, wrong), &key()).await.unwrap_err();
    assert_eq!(unknown.problem(), mistaken.problem());
    assert_eq!(unknown.problem().code, "lease_unknown");
}

#[tokio::test]
async fn an_answer_to_a_wrong_token_takes_its_time() {
    let house = House::new().await;
    let Parts { registry, authority, clock, session_url, .. } = &*house.enrolment.0;
    let slow = Limits { refusal_after: Duration::from_millis(100), ..Limits::default() };
    let enrolment = Enrolment::new(registry.clone(), authority.clone(), Arc::clone(clock), session_url.clone(), &slow);
    let wrong = Token::from_bits(TokenKind::Lease, [9; 32]);
    let begun = tokio::time::Instant::now();
    let answer = enrolment.enrol(&request(&LeaseId::from_bits([9; 10]), &wrong, ""), STRANGER).await;
    assert_eq!(refused(answer), "lease_unknown");
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn ten_wrong_tokens_burn_a_lease_even_for_the_right_one() {
    let house = House::new().await;
    let (lease, token) = house.lease("nas", 1).await;
    let wrong = (lease.clone(), Token::from_bits(TokenKind::Lease, [9; 32]));
    for _ in 0..10 {
        assert_eq!(refused(house.enrol(&wrong, &key()).await), "lease_unknown");
    }
    assert_eq!(refused(house.enrol(&(lease, token), &key()).await), "lease_revoked");
}

#[tokio::test]
async fn a_mistyped_token_costs_the_lease_nothing() {
    let house = House::new().await;
    let (lease, token) = house.lease("nas", 1).await;
    let mut text = token.expose().to_owned();
    text.replace_range(10..11, if &text[10..11] == "A" { "B" } else { "A" });
    let mistyped: Token = serde_json::from_value(serde_json::Value::String(text)).unwrap();
    for _ in 0..20 {
        assert_eq!(refused(house.enrol(&(lease.clone(), mistyped.clone()), &key()).await), "bad_request");
    }
    assert!(house.enrol(&(lease, token), &key()).await.is_ok());
}

#[tokio::test]
async fn a_bad_certificate_request_is_refused_and_leaves_the_lease_open() {
    let house = House::new().await;
    let (lease, token) = house.lease("nas", 1).await;
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let large = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n", "A".repeat(65_536));
    for bad in ["", "hello", &large, &csr(&rsa), &csr(&key()).replace("MI", "MJ")] {
        let answer = house.enrolment.enrol(&request(&lease, &token, bad), STRANGER).await;
        assert_eq!(refused(answer), "bad_request", "{:.40}", bad);
    }
    assert!(house.enrol(&(lease, token), &key()).await.is_ok());
}

#[tokio::test]
async fn of_a_hundred_claims_at_once_one_wins() {
    let house = House::new().await;
    let lease = house.lease("nas", 1).await;
    let keys: Vec<KeyPair> = (0..100).map(|_| key()).collect();
    let answers = join_all(keys.iter().map(|key| house.enrol(&lease, key))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert!(lost.into_iter().all(|answer| refused(answer) == "lease_used"));
    let satellite = won.into_iter().next().unwrap().unwrap().satellite;
    assert_eq!(house.registry.certificates(&satellite).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_hundred_claims_of_one_key_get_one_certificate() {
    let house = House::new().await;
    let (lease, key) = (house.lease("nas", 1).await, key());
    let answers = join_all((0..100).map(|_| house.enrol(&lease, &key))).await;
    let chains: std::collections::HashSet<_> = answers.into_iter().map(|answer| answer.unwrap().chain).collect();
    assert_eq!(chains.len(), 1);
}

#[tokio::test]
async fn a_replaced_identity_ends_when_the_new_one_enrols() {
    let house = House::new().await;
    let old = house.satellite(&key()).await;
    let lease = house.lease_with("nas", 2, true).await;
    let new = house.enrol(&lease, &key()).await.unwrap();
    assert_eq!((&new.satellite, new.generation), (&old.satellite, 2));
    let before = house.registry.certificate_of(&old.satellite, 1).await.unwrap().unwrap();
    assert!(!before.in_force(house.now_ms()));
    assert!(!house.registry.changes_since(0).await.unwrap().is_empty(), "live sessions hear of it");
}

#[tokio::test]
async fn a_renewal_waits_for_its_first_use() {
    let house = House::new().await;
    let enrolled = house.satellite(&key()).await;
    let next = house.enrolment.renew(&enrolled.satellite, &csr(&key())).await.unwrap();
    assert_eq!(next.generation, 2);
    let states = house.registry.certificates(&enrolled.satellite).await.unwrap();
    let states: Vec<_> = states.iter().map(|row| row.state).collect();
    assert_eq!(states, [CertificateState::PendingUse, CertificateState::Current]);
}

#[tokio::test]
async fn a_satellite_that_renews_without_end_is_told_to_wait() {
    let house = House::new().await;
    let enrolled = house.satellite(&key()).await;
    let csr = csr(&key());
    for _ in 1..240 {
        house.enrolment.renew(&enrolled.satellite, &csr).await.unwrap();
    }
    let error = house.enrolment.renew(&enrolled.satellite, &csr).await.unwrap_err().to_string();
    assert!(error.contains("too many certificates"), "{error}");
    house.clock.advance(WEEK_MS + 2 * HOUR_MS);
    house.enrolment.renew(&enrolled.satellite, &csr).await.unwrap();
    let left = house.registry.certificates(&enrolled.satellite).await.unwrap().len();
    assert!(left < 20, "the ended ones are gone: {left}");
}

#[tokio::test]
async fn a_satellite_whose_last_renewal_was_lost_comes_back_with_the_one_before() {
    let house = House::new().await;
    let (first, second) = (key(), key());
    let enrolled = house.satellite(&first).await;
    house.enrolment.renew(&enrolled.satellite, &csr(&second)).await.unwrap();
    house.enrolment.renew(&enrolled.satellite, &csr(&key())).await.unwrap();
    let kept = house.registry.certificate_of(&enrolled.satellite, 2).await.unwrap().unwrap();
    assert!(kept.in_force(house.now_ms()));
    house.clock.advance(2 * WEEK_MS);
    assert_eq!(house.recover(&enrolled.satellite, 2, &second, &key()).await.unwrap().generation, 4);
}

#[tokio::test]
async fn a_satellite_comes_back_after_months_with_its_old_key() {
    let house = House::new().await;
    let (old, new) = (key(), key());
    let enrolled = house.satellite(&old).await;
    house.clock.advance(26 * WEEK_MS);
    let recovered = house.recover(&enrolled.satellite, 1, &old, &new).await.unwrap();
    assert_eq!((recovered.generation, &recovered.lease), (2, &enrolled.lease));
    assert!(recovered.not_after_ms > house.now_ms());
    let satellite = house.registry.satellite(&enrolled.satellite).await.unwrap().unwrap();
    assert!(satellite.token_matches(&recovered.token));
    // The answer was lost: the old key still recovers.
    assert_eq!(house.recover(&enrolled.satellite, 1, &old, &new).await.unwrap().generation, 3);
}

#[tokio::test]
async fn a_nonce_recovers_once_and_for_a_minute() {
    let house = House::new().await;
    let old = key();
    let enrolled = house.satellite(&old).await;
    let who = || ChallengeRequest { satellite: enrolled.satellite.clone() };
    let nonce = house.enrolment.challenge(who()).nonce;
    let request = recovery(&enrolled.satellite, &nonce, 1, &old, &key());
    assert!(house.enrolment.recover(&request).await.is_ok());
    assert_eq!(refused(house.enrolment.recover(&request).await), "nonce_unknown");
    let nonce = house.enrolment.challenge(who()).nonce;
    house.clock.advance(60_000);
    let late = recovery(&enrolled.satellite, &nonce, 1, &old, &key());
    assert_eq!(refused(house.enrolment.recover(&late).await), "nonce_unknown");
    let invented = recovery(&enrolled.satellite, &"0".repeat(64), 1, &old, &key());
    assert_eq!(refused(house.enrolment.recover(&invented).await), "nonce_unknown");
}

#[tokio::test]
async fn nobody_recovers_without_the_registered_key() {
    let house = House::new().await;
    let (old, other) = (key(), key());
    let enrolled = house.satellite(&old).await;
    assert_eq!(refused(house.recover(&enrolled.satellite, 1, &other, &other).await), "proof_failed");
    assert_eq!(refused(house.recover(&enrolled.satellite, 7, &old, &other).await), "proof_failed");
    assert_eq!(refused(house.recover(&enrolled.satellite, u64::MAX, &old, &other).await), "proof_failed");
    let stranger = SatelliteId::from_bits([9; 10]);
    assert_eq!(refused(house.recover(&stranger, 1, &old, &other).await), "proof_failed");
    // Signed for one request, sent with another key in it.
    let nonce = house.enrolment.challenge(ChallengeRequest { satellite: enrolled.satellite.clone() }).nonce;
    let swapped = RecoverRequest { csr: csr(&other), ..recovery(&enrolled.satellite, &nonce, 1, &old, &key()) };
    assert_eq!(refused(house.enrolment.recover(&swapped).await), "proof_failed");
}

#[tokio::test]
async fn a_revoked_satellite_does_not_recover_and_hears_why() {
    let house = House::new().await;
    let old = key();
    let enrolled = house.satellite(&old).await;
    house.registry.revoke_satellite(&enrolled.satellite, house.now_ms()).await.unwrap();
    assert_eq!(refused(house.recover(&enrolled.satellite, 1, &old, &key()).await), "revoked");
    assert!(house.enrolment.renew(&enrolled.satellite, &csr(&key())).await.is_err());
}

#[tokio::test]
async fn an_old_backup_of_a_satellite_does_not_recover() {
    let house = House::new().await;
    let old = key();
    let enrolled = house.satellite(&old).await;
    house.enrolment.renew(&enrolled.satellite, &csr(&key())).await.unwrap();
    house.registry.certificate_used(&enrolled.satellite, 2, house.now_ms()).await.unwrap();
    house.clock.advance(HOUR_MS);
    assert_eq!(refused(house.recover(&enrolled.satellite, 1, &old, &key()).await), "stale_certificate");
}

#[tokio::test]
async fn ten_recoveries_in_a_row_are_enough_and_a_renewal_starts_the_count_anew() {
    let house = House::new().await;
    let old = key();
    let enrolled = house.satellite(&old).await;
    for _ in 0..10 {
        house.recover(&enrolled.satellite, 1, &old, &key()).await.unwrap();
    }
    assert_eq!(refused(house.recover(&enrolled.satellite, 1, &old, &key()).await), "recovery_limit");
    house.enrolment.renew(&enrolled.satellite, &csr(&key())).await.unwrap();
    assert!(house.recover(&enrolled.satellite, 1, &old, &key()).await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_one_relay_is_nothing_at_another() {
    let (here, there) = (House::new().await, House::new().await);
    let old = key();
    let enrolled = here.satellite(&old).await;
    assert_eq!(refused(there.recover(&enrolled.satellite, 1, &old, &key()).await), "proof_failed");
    let lease = here.lease("ups", 3).await;
    assert_eq!(refused(there.enrol(&lease, &key()).await), "lease_unknown");
}

#[test]
fn every_refusal_says_what_to_do() {
    for refusal in [
        LeaseRefusal::Unknown.into(),
        LeaseRefusal::Used.into(),
        LeaseRefusal::Expired.into(),
        LeaseRefusal::Revoked.into(),
        Refusal::Proof,
        Refusal::Revoked,
        Refusal::Stale,
        Refusal::TooManyRecoveries,
    ] {
        let problem = Refusal::problem(&refusal);
        assert!(problem.message.contains("lease"), "{}", problem.message);
    }
}
