//! Certificates and keys of the tests' own, for servers and clients on the loopback.

use std::net::IpAddr;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

/// How long a certificate holds when nobody says otherwise.
const DAYS: u32 = 2;

/// Somebody who signs.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = key();
        let mut builder = builder(name, &key);
        let issuer = builder_name(name);
        builder.set_issuer_name(&issuer).unwrap();
        let constraint = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(constraint).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Self {
            certificate: builder.build(),
            key,
        }
    }

    /// As PEM.
    pub fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// A certificate of this common name, for this address if it is one, and its key, as PEM.
    pub fn issue(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        self.issue_for(name, DAYS)
    }

    /// [`Self::issue`] of one that holds for so many days.
    pub fn issue_for(&self, name: &str, days: u32) -> (Vec<u8>, Vec<u8>) {
        let key = key();
        let mut builder = builder(name, &key);
        builder.set_not_after(&Asn1Time::days_from_now(days).unwrap()).unwrap();
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let mut names = SubjectAlternativeName::new();
        if name.parse::<IpAddr>().is_ok() {
            names.ip(name);
        } else {
            names.dns(name);
        }
        let names = names.build(&context).unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        (
            builder.build().to_pem().unwrap(),
            key.private_key_to_pem_pkcs8().unwrap(),
        )
    }
}

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn builder_name(name: &str) -> openssl::x509::X509Name {
    let mut builder = X509NameBuilder::new().unwrap();
    builder.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    builder.build()
}

fn builder(name: &str, key: &PKey<Private>) -> X509Builder {
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&builder_name(name)).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(DAYS).unwrap()).unwrap();
    builder
}
