//! Who asks: a community (RFC 3584), or a user with passwords of its own (RFC 3414).
//!
//! Communities and passwords are secrets of the house, asked of the keyring for every poll. Deliberately absent: MD5 and
//! DES, which are no protection any more; a device that has nothing else is asked by a community of its own.

use satellite_shared::gap::Reason;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use snmp2::v3;

use crate::collector::Failure;
use crate::collector::address::Address;
use crate::policy::Protocol;
use crate::secrets::{Keyring, SecretName};

/// What devices answer to as they come.
const COMMUNITY: &str = "public";
/// RFC 3414, `SnmpAdminString (SIZE(1..32))`.
const USER_BYTES_MAX: usize = 32;

/// `auth = { protocol = "sha256", secret = "switch" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    protocol: AuthProtocol,
    secret: SecretName,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AuthProtocol {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// `privacy = { protocol = "aes128", secret = "switch-privacy" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Privacy {
    protocol: PrivacyProtocol,
    secret: SecretName,
}

/// Those with a `c` make a short key long as Cisco's devices do, the others as draft-blumenthal-aes-usm says.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PrivacyProtocol {
    Aes128,
    Aes192,
    Aes192C,
    Aes256,
    Aes256C,
}

/// Who asks, as a configuration says it.
pub(super) enum Login {
    /// SNMPv2c.
    Community(Option<SecretName>),
    /// SNMPv3.
    User {
        /// Its name.
        user: String,
        /// How it proves itself.
        auth: Option<Auth>,
        /// How nobody else reads along.
        privacy: Option<Privacy>,
    },
}

/// Who asks, with the secrets.
pub(super) enum Credentials {
    /// SNMPv2c.
    Community(SecretString),
    /// SNMPv3, and the passwords that the library has in there.
    User(Box<v3::Security>, Vec<SecretString>),
}

impl Credentials {
    /// The secrets in them.
    pub(super) fn secrets(&self) -> &[SecretString] {
        match self {
            Self::Community(community) => std::slice::from_ref(community),
            Self::User(_, passwords) => passwords,
        }
    }
}

impl Login {
    /// Reads what a device's configuration says; the error names the key.
    pub(super) fn parse(
        secret: Option<SecretName>,
        user: Option<String>,
        auth: Option<Auth>,
        privacy: Option<Privacy>,
    ) -> Result<Self, (&'static str, &'static str)> {
        let Some(user) = user else {
            return match (auth, privacy) {
                (None, None) => Ok(Self::Community(secret)),
                (Some(_), _) => Err(("auth", "SNMPv3 needs the `user` that this is of")),
                (None, Some(_)) => Err(("privacy", "SNMPv3 needs the `user` that this is of")),
            };
        };
        if secret.is_some() {
            return Err(("secret", "a community is SNMPv2c's: a user has its secrets in `auth` and `privacy`"));
        }
        if user.is_empty() || user.len() > USER_BYTES_MAX {
            return Err(("user", "a name of 1 to 32 bytes"));
        }
        if privacy.is_some() && auth.is_none() {
            return Err(("privacy", "SNMPv3 has no privacy without `auth`"));
        }
        Ok(Self::User { user, auth, privacy })
    }

    /// Asks the keyring for what is needed at this address.
    pub(super) fn credentials(&self, keyring: &Keyring, at: &Address) -> Result<Credentials, Failure> {
        let give = |secret: &SecretName| keyring.give(secret, Protocol::Snmp, &at.host, at.port);
        match self {
            Self::Community(None) => Ok(Credentials::Community(SecretString::from(COMMUNITY))),
            Self::Community(Some(secret)) => Ok(Credentials::Community(give(secret)?)),
            Self::User { user, auth, privacy } => {
                let Some(auth) = auth else {
                    let security = v3::Security::new(user.as_bytes(), b"").with_auth(v3::Auth::NoAuthNoPriv);
                    return Ok(Credentials::User(Box::new(security), Vec::new()));
                };
                let password = give(&auth.secret)?;
                let mut passwords = vec![password.clone()];
                let mut security = v3::Security::new(user.as_bytes(), password.expose_secret().as_bytes())
                    .with_auth_protocol(auth.protocol.wire())
                    .with_auth(v3::Auth::AuthNoPriv);
                if let Some(privacy) = privacy {
                    let password = give(&privacy.secret)?;
                    let (cipher, extension) = privacy.protocol.wire();
                    let privacy_password = password.expose_secret().as_bytes().to_vec();
                    security = security
                        .with_auth(v3::Auth::AuthPriv { cipher, privacy_password })
                        .with_key_extension_method(extension);
                    passwords.push(password);
                }
                Ok(Credentials::User(Box::new(security), passwords))
            }
        }
    }

    /// What a device that refuses would have to be told.
    pub(super) fn refusal(&self) -> Failure {
        let detail = match self {
            Self::Community(_) => "the device answers to no such community",
            Self::User { auth: None, .. } => "the device refuses the user without a password: it may want `auth`",
            Self::User { privacy: None, .. } => {
                "the device refuses the user, its password or their protocol, or wants `privacy`"
            }
            Self::User { .. } => "the device refuses the user, a password or a protocol",
        };
        Failure::new(Reason::Refused, detail)
    }

    /// What else silence can mean.
    pub(super) fn silence(&self) -> &'static str {
        match self {
            Self::Community(_) => "is SNMPv2c on there, and the community right? A wrong one is met with silence",
            Self::User { .. } => "is SNMPv3 on there, and the `privacy` right? A wrong one can be met with silence",
        }
    }
}

impl AuthProtocol {
    fn wire(self) -> v3::AuthProtocol {
        match self {
            Self::Sha1 => v3::AuthProtocol::Sha1,
            Self::Sha224 => v3::AuthProtocol::Sha224,
            Self::Sha256 => v3::AuthProtocol::Sha256,
            Self::Sha384 => v3::AuthProtocol::Sha384,
            Self::Sha512 => v3::AuthProtocol::Sha512,
        }
    }
}

impl PrivacyProtocol {
    fn wire(self) -> (v3::Cipher, v3::KeyExtension) {
        match self {
            Self::Aes128 => (v3::Cipher::Aes128, v3::KeyExtension::Blumenthal),
            Self::Aes192 => (v3::Cipher::Aes192, v3::KeyExtension::Blumenthal),
            Self::Aes192C => (v3::Cipher::Aes192, v3::KeyExtension::Reeder),
            Self::Aes256 => (v3::Cipher::Aes256, v3::KeyExtension::Blumenthal),
            Self::Aes256C => (v3::Cipher::Aes256, v3::KeyExtension::Reeder),
        }
    }
}
