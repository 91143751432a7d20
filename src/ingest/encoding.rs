//! Compressed bodies (`Content-Encoding`, RFC 9110 8.4.1 and RFC 8878): expanded up to a limit, so that a few bytes
//! cannot become more memory than a body may have.

use std::io::{self, Read};

use super::{IngestError, shorten};

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// gzip, RFC 1952; several members are one body.
    Gzip,
    /// zlib, RFC 1950; also without its head (RFC 1951 alone), which old clients send.
    Deflate,
    /// Zstandard, RFC 8878, with a window of 8 MiB at most (RFC 9659).
    Zstd,
}

/// The window that a decoder must take and need not exceed, RFC 9659: 2^23 bytes.
const WINDOW_LOG_MAX: u32 = 23;
/// The most members of a gzip body: who appends to a file makes a few.
const MEMBERS_MAX: usize = 100;

impl Encoding {
    /// What all `Content-Encoding` headers of a request say together.
    ///
    /// # Errors
    /// [`IngestError::ContentEncoding`]: an unknown one, or more than one.
    pub fn parse<'h>(headers: impl IntoIterator<Item = &'h [u8]>) -> Result<Self, IngestError> {
        let mut found = Self::Identity;
        for header in headers {
            for given in header.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                let encoding = match given {
                    _ if given.eq_ignore_ascii_case(b"identity") => continue,
                    _ if given.eq_ignore_ascii_case(b"gzip") || given.eq_ignore_ascii_case(b"x-gzip") => Self::Gzip,
                    _ if given.eq_ignore_ascii_case(b"deflate") => Self::Deflate,
                    _ if given.eq_ignore_ascii_case(b"zstd") => Self::Zstd,
                    _ => return Err(IngestError::ContentEncoding { given: shorten(given) }),
                };
                if found != Self::Identity {
                    return Err(IngestError::ContentEncoding { given: shorten(header) });
                }
                found = encoding;
            }
        }
        Ok(found)
    }

    /// The body as it was before it was compressed.
    ///
    /// # Errors
    /// [`IngestError::ExpandedTooLarge`], or [`IngestError::Malformed`]: it is damaged, cut off, or something follows it.
    pub fn expand(self, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, IngestError> {
        // A zlib head: method 8, and both bytes as a number are a multiple of 31.
        let is_zlib =
            matches!(*body, [cmf, flg, ..] if cmf & 0x0F == 8 && (u16::from(cmf) * 256 + u16::from(flg)) % 31 == 0);
        let expanded = match self {
            Self::Identity => return Ok(body.to_vec()),
            Self::Gzip => members(body, bytes_max),
            Self::Deflate if is_zlib => {
                let mut decoder = flate2::bufread::ZlibDecoder::new(body);
                all_of(&mut decoder, bytes_max).and_then(|expanded| ended(decoder.get_ref(), expanded, bytes_max))
            }
            Self::Deflate => {
                let mut decoder = flate2::bufread::DeflateDecoder::new(body);
                all_of(&mut decoder, bytes_max).and_then(|expanded| ended(decoder.get_ref(), expanded, bytes_max))
            }
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(body).and_then(|mut decoder| {
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                all_of(decoder, bytes_max)
            }),
        };
        let expanded = expanded.map_err(|error| {
            IngestError::Malformed(format!(
                "the body cannot be expanded as its Content-Encoding says: {error}. Nothing of it was taken; send it again, or as \
                 it is."
            ))
        })?;
        if expanded.len() > bytes_max {
            return Err(IngestError::ExpandedTooLarge { bytes_max });
        }
        Ok(expanded)
    }
}

/// All members of a gzip body. Each costs the decoder a state of its own, however little is in it.
fn members(mut body: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut expanded = Vec::new();
    for _ in 0..MEMBERS_MAX {
        let mut decoder = flate2::bufread::GzDecoder::new(body);
        let left = bytes_max.saturating_sub(expanded.len()) as u64 + 1;
        Read::by_ref(&mut decoder).take(left).read_to_end(&mut expanded)?;
        body = decoder.into_inner();
        if body.is_empty() || expanded.len() > bytes_max {
            return Ok(expanded);
        }
    }
    let what = format!("it has more than {MEMBERS_MAX} members");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// One byte more than `bytes_max` at most.
fn all_of(reader: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut expanded = Vec::new();
    reader.take(bytes_max as u64 + 1).read_to_end(&mut expanded)?;
    Ok(expanded)
}

/// Nothing may follow what is whole: it would be dropped in silence.
fn ended(rest: &[u8], expanded: Vec<u8>, bytes_max: usize) -> io::Result<Vec<u8>> {
    match rest.is_empty() || expanded.len() > bytes_max {
        true => Ok(expanded),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "something follows its end")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::io::Write as _;

    use flate2::Compression;
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd];

    fn compressed(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    #[test]
    fn what_headers_say() {
        let parse = |headers: &[&str]| Encoding::parse(headers.iter().map(|header| header.as_bytes()));
        assert_eq!(parse(&[]).unwrap(), Encoding::Identity);
        assert_eq!(parse(&["identity", " GZip "]).unwrap(), Encoding::Gzip);
        assert_eq!(parse(&["x-gzip"]).unwrap(), Encoding::Gzip);
        assert_eq!(parse(&["identity, deflate"]).unwrap(), Encoding::Deflate);
        assert_eq!(parse(&["zstd"]).unwrap(), Encoding::Zstd);
        for refused in [&["br"][..], &["gzip, gzip"], &["gzip", "zstd"], &[""], &["gzip;q=1"]] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_deflate_body_without_a_head_is_taken() {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"hello").unwrap();
        let body = encoder.finish().unwrap();
        assert_eq!(Encoding::Deflate.expand(&body, 100).unwrap(), b"hello");
    }

    #[test]
    fn members_of_gzip_and_frames_of_zstd_are_one_body() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let body = [compressed(encoding, b"one "), compressed(encoding, b"two")].concat();
            assert_eq!(encoding.expand(&body, 100).unwrap(), b"one two");
        }
    }

    #[test]
    fn a_body_of_nothing_but_members_is_refused() {
        let members = |count| compressed(Encoding::Gzip, b"").repeat(count);
        assert_eq!(Encoding::Gzip.expand(&members(MEMBERS_MAX), 10).unwrap(), b"");
        let refused = Encoding::Gzip.expand(&members(MEMBERS_MAX + 1), 10);
        assert!(matches!(refused, Err(IngestError::Malformed(_))), "{refused:?}");
    }

    #[test]
    fn a_bomb_is_refused_without_its_memory() {
        let zeros = vec![0; 8 << 20];
        for encoding in ALL {
            let bomb = compressed(encoding, &zeros);
            assert!(bomb.len() < 10_000, "{encoding:?}: {}", bomb.len());
            assert_eq!(
                encoding.expand(&bomb, 1 << 20),
                Err(IngestError::ExpandedTooLarge { bytes_max: 1 << 20 })
            );
            assert_eq!(encoding.expand(&bomb, 8 << 20).unwrap().len(), 8 << 20);
        }
    }

    #[test]
    fn a_window_that_is_too_large_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&vec![7; 20 << 20]).unwrap();
        let body = encoder.finish().unwrap();
        assert!(matches!(
            Encoding::Zstd.expand(&body, 64 << 20),
            Err(IngestError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(data in prop::collection::vec(any::<u8>(), 0..2_000)) {
            for encoding in ALL {
                prop_assert_eq!(&encoding.expand(&compressed(encoding, &data), 2_000).unwrap(), &data);
            }
        }

        #[test]
        fn a_body_that_is_cut_off_or_goes_on_is_refused(data in prop::collection::vec(any::<u8>(), 1..500), at in 0.0..1.0) {
            for encoding in ALL {
                let whole = compressed(encoding, &data);
                let cut = (whole.len() as f64 * at) as usize;
                if cut > 0 {
                    prop_assert!(encoding.expand(&whole[..cut], 2_000).is_err(), "{:?} cut at {}", encoding, cut);
                }
                prop_assert!(encoding.expand(&[&whole[..], b"more"].concat(), 2_000).is_err(), "{:?} goes on", encoding);
            }
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            for encoding in ALL {
                if let Ok(expanded) = encoding.expand(&data, 1_000) {
                    prop_assert!(expanded.len() <= 1_000);
                }
            }
        }
    }
}
