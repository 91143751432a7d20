//! Requests of HTTP/1.1 that are wrong, or look so.

/// What a request to `/outer` has between its type and its body, that body, and the statuses that may answer it. 0: it is
/// cut off without an answer.
pub type Odd = (&'static str, &'static str, &'static str, &'static [u16]);

const REFUSED: &[u16] = &[400, 408, 411, 501];

/// Of each the body ends somewhere else for whoever reads it another way, and there the other request stands.
pub const AMBIGUOUS: &[Odd] = &[
    (
        "a length and chunks",
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
        &[200, 400],
    ),
    (
        "chunks and a length",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        "0\r\n\r\n",
        &[200, 400],
    ),
    (
        "two lengths",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "{}",
        REFUSED,
    ),
    ("two lengths in one", "Content-Length: 2, 3\r\n", "{}", REFUSED),
    ("a length with a sign", "Content-Length: +2\r\n", "{}", REFUSED),
    ("a negative length", "Content-Length: -2\r\n", "{}", REFUSED),
    ("a hexadecimal length", "Content-Length: 0x2\r\n", "{}", REFUSED),
    ("a length with an exponent", "Content-Length: 2e0\r\n", "{}", REFUSED),
    ("a length with a point", "Content-Length: 2.0\r\n", "{}", REFUSED),
    ("an empty length", "Content-Length: \r\n", "{}", REFUSED),
    (
        "a length of 2^64 + 2",
        "Content-Length: 18446744073709551618\r\n",
        "{}",
        &[400, 411, 413],
    ),
    ("a length with a space inside", "Content-Length: 2 2\r\n", "{}", REFUSED),
    (
        "a length of another script",
        "Content-Length: \u{662}\r\n",
        "{}",
        REFUSED,
    ),
    (
        "an unknown coding",
        "Transfer-Encoding: xchunked\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "a coding that is none",
        "Transfer-Encoding: identity\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "chunks inside of gzip",
        "Transfer-Encoding: chunked, gzip\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "chunks and none",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "chunks with a quote",
        "Transfer-Encoding: \"chunked\"\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "chunks behind a vertical tab",
        "Transfer-Encoding: \x0bchunked\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "chunks before a null",
        "Transfer-Encoding: chunked\0\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    (
        "a space before the colon of a length",
        "Content-Length : 2\r\n",
        "{}",
        REFUSED,
    ),
    (
        "a space before the colon of a coding",
        "Transfer-Encoding : chunked\r\n",
        "0\r\n\r\n",
        REFUSED,
    ),
    ("a tab before the colon", "Content-Length\t: 2\r\n", "{}", REFUSED),
    ("a line that is folded", "X: a\r\n Content-Length: 2\r\n", "{}", REFUSED),
    ("a length that is folded", "Content-Length:\r\n 2\r\n", "{}", REFUSED),
    (
        "a line that begins with a space",
        " Content-Length: 2\r\n",
        "{}",
        REFUSED,
    ),
    (
        "a carriage return inside of a value",
        "X: a\rContent-Length: 2\r\n",
        "{}",
        REFUSED,
    ),
    (
        "a null inside of a value",
        "X: a\0b\r\nContent-Length: 2\r\n",
        "{}",
        REFUSED,
    ),
    ("a null inside of a name", "Content-Length\0: 2\r\n", "{}", REFUSED),
    ("a header without a name", ": 2\r\n", "{}", REFUSED),
    ("a header without a colon", "Content-Length 2\r\n", "{}", REFUSED),
    (
        "a chunk's size with a prefix",
        "Transfer-Encoding: chunked\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's size with a sign",
        "Transfer-Encoding: chunked\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a negative chunk",
        "Transfer-Encoding: chunked\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's size beyond 64 bits",
        "Transfer-Encoding: chunked\r\n",
        "10000000000000002\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk without a size",
        "Transfer-Encoding: chunked\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's size that is no number",
        "Transfer-Encoding: chunked\r\n",
        "g\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's size before a bare line feed",
        "Transfer-Encoding: chunked\r\n",
        "2\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's size before a bare carriage return",
        "Transfer-Encoding: chunked\r\n",
        "2\rX{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk longer than its size",
        "Transfer-Encoding: chunked\r\n",
        "1\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a chunk's end without a carriage return",
        "Transfer-Encoding: chunked\r\n",
        "2\r\n{}\n0\r\n\r\n",
        REFUSED,
    ),
    (
        "a line feed inside of an extension",
        "Transfer-Encoding: chunked\r\n",
        "2;a\nb\r\n{}\r\n0\r\n\r\n",
        REFUSED,
    ),
];

/// Request lines and heads that are none, or no HTTP/1.1.
pub const NO_REQUESTS: &[(&str, &str, &[u16])] = &[
    ("no Host", "POST /outer HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", &[400]),
    (
        "two Hosts",
        "POST /outer HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a Host that is none",
        "POST /outer HTTP/1.1\r\nHost: a b\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a Host with a path",
        "POST /outer HTTP/1.1\r\nHost: a/b\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "bare line feeds",
        "POST /outer HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
        &[400],
    ),
    (
        "chunks in HTTP/1.0",
        "POST /outer HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        &[400],
    ),
    ("HTTP/0.9", "POST /outer\r\n", &[400]),
    (
        "HTTP/1.2",
        "POST /outer HTTP/1.2\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400, 505],
    ),
    (
        "HTTP/2.0 by its line",
        "POST /outer HTTP/2.0\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400, 505],
    ),
    ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0]),
    (
        "a version in lower case",
        "POST /outer http/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a version with more",
        "POST /outer HTTP/1.1x\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a space in the path",
        "POST /outer /b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a tab between",
        "POST\t/outer\tHTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "two spaces between",
        "POST  /outer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a null in the path",
        "POST /ou\0ter HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "a method that is none",
        "PO(ST /outer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "no method",
        " /outer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[400],
    ),
    (
        "TLS to a plain port",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        &[400],
    ),
];

/// Of these it is clear where they end: they are refused, and what follows them is a request of its own.
pub const CLEAR: &[(&str, &str, &[u16])] = &[
    (
        "a method in lower case",
        "post /outer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        &[405],
    ),
    (
        "a tunnel",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        &[400, 404, 405],
    ),
    ("a trace", "TRACE /outer HTTP/1.1\r\nHost: x\r\n\r\n", &[405]),
    (
        "another expectation",
        "POST /outer HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}",
        &[415, 417],
    ),
];

/// What is right, and looks like one of those above.
pub const RIGHT: &[(&str, &str, &str, &str)] = &[
    (
        "chunks in capitals",
        "",
        "Transfer-Encoding: CHUNKED\r\n",
        "2\r\n{}\r\n0\r\n\r\n",
    ),
    (
        "a chunk's extension",
        "",
        "Transfer-Encoding: chunked\r\n",
        "2;a=\"b\"\r\n{}\r\n0\r\n\r\n",
    ),
    (
        "a chunk's size with zeros",
        "",
        "Transfer-Encoding: chunked\r\n",
        "0002\r\n{}\r\n000\r\n\r\n",
    ),
    (
        "trailers",
        "",
        "Transfer-Encoding: chunked\r\nTrailer: x\r\n",
        "2\r\n{}\r\n0\r\nX: 1\r\n\r\n",
    ),
    (
        "a trailer with a length",
        "",
        "Transfer-Encoding: chunked\r\n",
        "2\r\n{}\r\n0\r\nContent-Length: 900\r\n\r\n",
    ),
    (
        "a length with zeros",
        "",
        "Content-Length: 0000000000000000000000002\r\n",
        "{}",
    ),
    (
        "the same length twice",
        "",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "{}",
    ),
    ("spaces around a length", "", "Content-Length: \t 2 \t\r\n", "{}"),
    ("an empty line before", "\r\n", "Content-Length: 2\r\n", "{}"),
    ("headers in capitals", "", "CONTENT-LENGTH: 2\r\n", "{}"),
    (
        "an upgrade that is not taken",
        "",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n",
        "{}",
    ),
];
