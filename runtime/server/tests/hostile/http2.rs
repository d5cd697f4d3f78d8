//! Hostile clients of HTTP/2: of gRPC, and of the REST port by prior knowledge.

use std::{net::SocketAddr, time::Duration};

use crate::{
    frames::{
        CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        block, frame, grpc_head,
    },
    http1::gzip,
    server::{MAX_REQUEST_BYTES, Server},
};

/// Largest frame that needs no agreement.
const FRAME_BYTES: usize = 16 << 10;
/// A window of 0 for streams (RFC 9113, 6.5.2).
const NO_WINDOW: (u16, u32) = (4, 0);

/// The prefix of a gRPC message.
fn message(compressed: bool, length: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![u8::from(compressed)];
    message.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    message.extend_from_slice(bytes);
    message
}

/// Sends a body in frames, without an end.
fn send_body(connection: &mut Connection, stream: u32, body: &[u8]) -> bool {
    body.chunks(FRAME_BYTES).all(|chunk| connection.send(&frame(DATA, 0, stream, chunk)))
}

/// A `ModelInferRequest` with a tensor of so many bytes.
fn infer_request(bytes: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    varint_field(&mut raw, 1, b"echo");
    let mut input = Vec::new();
    varint_field(&mut input, 1, b"input");
    varint_field(&mut input, 2, b"UINT8");
    let mut shape = Vec::new();
    varint(&mut shape, bytes);
    varint_field(&mut input, 3, &shape);
    varint_field(&mut raw, 5, &input);
    varint_field(&mut raw, 7, &vec![9; bytes]);
    raw
}

/// A whole inference call with a tensor of so many bytes.
fn call(connection: &mut Connection, stream: u32, bytes: usize) -> bool {
    let request = infer_request(bytes);
    let body = message(false, request.len(), &request);
    connection.send(&frame(HEADERS, END_HEADERS, stream, &grpc_head(&[])))
        && send_body(connection, stream, &body)
        && connection.send(&frame(DATA, END_STREAM, stream, &[]))
}

fn varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 128 {
        bytes.push(u8::try_from(value & 127).unwrap() | 128);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
}

fn varint_field(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    bytes.push(tag << 3 | 2);
    varint(bytes, value.len());
    bytes.extend_from_slice(value);
}

/// Does so on that many streams, one after the other, until the server takes no more.
fn on_streams(count: u32, send: impl FnMut(u32) -> bool) -> bool {
    (0..count).map(|number| number * 2 + 1).all(send)
}

/// Opens that many connections to each address, one after the other, and holds them all open. `attack` says whether the server took
/// everything, which is its to choose.
fn held(addresses: &[SocketAddr], count: usize, attack: impl Fn(&mut Connection) -> bool) -> Vec<Connection> {
    let addresses = addresses.iter().flat_map(|address| std::iter::repeat_n(*address, count));
    addresses
        .map(|address| {
            let mut connection = Connection::open(address, &[]);
            attack(&mut connection);
            connection
        })
        .collect()
}

/// Asserts that a server withstands the attack and serves a friendly client afterwards.
fn assert_withstood<T>(attack: impl FnOnce(&Server) -> T) {
    let server = Server::start();
    server.withstands(|| attack(&server));
    server.serves_a_friendly_client();
}

fn both_ports(server: &Server) -> [SocketAddr; 2] {
    [server.grpc, server.rest]
}

#[test]
fn a_header_block_without_an_end_is_refused() {
    let filler = block(&[("filler", &"x".repeat(FRAME_BYTES - 64))]);
    let continuation = frame(CONTINUATION, 0, 1, &filler);
    assert_withstood(|server| {
        held(&both_ports(server), 16, |connection| {
            connection.send(&frame(HEADERS, 0, 1, &grpc_head(&[]))) && (0..256).all(|_| connection.send(&continuation))
        })
    });
}

#[test]
fn many_streams_held_open_hold_no_more_than_the_budget() {
    let body = message(false, MAX_REQUEST_BYTES - 8, &vec![0; FRAME_BYTES]);
    assert_withstood(|server| {
        held(&both_ports(server), 8, |connection| {
            on_streams(1024, |stream| {
                connection.send(&frame(HEADERS, END_HEADERS, stream, &grpc_head(&[])))
                    && connection.send(&frame(DATA, 0, stream, &body[..FRAME_BYTES]))
            })
        })
    });
}

#[test]
fn gzip_held_open_over_grpc_inflates_within_the_budget() {
    let bomb = gzip(&infer_request(MAX_REQUEST_BYTES - 100));
    let body = message(true, bomb.len(), &bomb);
    assert_withstood(|server| {
        held(&[server.grpc], 8, |connection| {
            on_streams(64, |stream| {
                connection.send(&frame(HEADERS, END_HEADERS, stream, &grpc_head(&[("grpc-encoding", "gzip")])))
                    && send_body(connection, stream, &body)
            })
        })
    });
}

#[test]
fn a_message_longer_than_the_limit_is_refused_by_its_length_alone() {
    assert_withstood(|server| {
        held(&[server.grpc], 1, |connection| {
            let sent = on_streams(64, |stream| {
                connection.send(&frame(HEADERS, END_HEADERS, stream, &grpc_head(&[])))
                    && connection.send(&frame(DATA, 0, stream, &[0, 0xff, 0xff, 0xff, 0xff]))
            });
            assert!(connection.reads(HEADERS, Duration::from_secs(5)), "the refusal is told");
            sent
        })
    });
}

#[test]
fn answers_without_a_window_hold_no_more_than_the_budget() {
    assert_withstood(|server| {
        let mut held: Vec<_> = (0..8).map(|_| Connection::open(server.grpc, &[NO_WINDOW])).collect();
        for connection in &mut held {
            on_streams(32, |stream| {
                let sent = call(connection, stream, 48 << 10);
                connection.reads(WINDOW_UPDATE, Duration::from_millis(20));
                sent
            });
        }
        held
    });
}

#[test]
fn names_in_health_checks_that_never_end_hold_nothing() {
    let watch = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Watch"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    let mut request = Vec::new();
    varint_field(&mut request, 1, &vec![b'x'; 3 << 20]);
    let body = message(false, request.len(), &request);
    assert_withstood(|server| {
        held(&[server.grpc], 2, |connection| {
            on_streams(50, |stream| {
                connection.send(&frame(HEADERS, END_HEADERS, stream, &watch))
                    && send_body(connection, stream, &body)
                    && connection.send(&frame(DATA, END_STREAM, stream, &[]))
            })
        })
    });
}

#[test]
fn rapid_resets_hold_nothing_and_stop_nobody() {
    assert_withstood(|server| {
        for address in both_ports(server) {
            for _ in 0..4 {
                let mut connection = Connection::open(address, &[]);
                on_streams(20_000, |stream| {
                    let mut bytes = frame(HEADERS, END_HEADERS, stream, &grpc_head(&[]));
                    bytes.extend_from_slice(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    connection.send(&bytes)
                });
                connection.close();
            }
        }
    });
}

#[test]
fn floods_of_pings_and_settings_hold_nothing() {
    assert_withstood(|server| {
        [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])].map(|flood| {
            let flood = flood.repeat(1000);
            held(&both_ports(server), 1, |connection| (0..200).all(|_| connection.send(&flood)))
        })
    });
}

#[test]
fn empty_frames_without_end_hold_nothing() {
    let empty = frame(DATA, 0, 1, &[]).repeat(1000);
    assert_withstood(|server| {
        held(&[server.grpc], 1, |connection| {
            connection.send(&frame(HEADERS, END_HEADERS, 1, &grpc_head(&[])))
                && (0..500).all(|_| connection.send(&empty))
        })
    });
}

#[test]
fn small_entries_that_cost_much_memory_are_refused() {
    assert_withstood(|server| {
        [4_u8, 5, 6, 7].map(|tag| {
            let entries = [tag << 3 | 2, 0].repeat((MAX_REQUEST_BYTES >> 1) - 8);
            let body = message(false, entries.len(), &entries);
            held(&[server.grpc], 1, |connection| {
                connection.send(&frame(HEADERS, END_HEADERS, 1, &grpc_head(&[])));
                body.chunks(FRAME_BYTES).all(|chunk| {
                    let sent = connection.send(&frame(DATA, 0, 1, chunk));
                    // The refusal may come at any time, and the window is enlarged as the server reads.
                    connection.reads(WINDOW_UPDATE, Duration::from_millis(1));
                    sent
                });
                connection.send(&frame(DATA, END_STREAM, 1, &[]))
            })
        })
    });
}

#[test]
fn prefaces_without_more_leave_health_alone() {
    assert_withstood(|server| {
        let held = held(&[server.grpc], 200, |_| true);
        server.serves_a_friendly_client();
        held
    });
}
