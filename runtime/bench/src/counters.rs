//! Counters that a server exports in the text format of Prometheus: copies, allocations, whatever it counts of itself.
//!
//! `load` and `wire` read those that the command line names before and after a run. Invariant: a counter that the server does not
//! export has no figure, which is not the same as zero.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long the server may take to tell.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A plain GET on a connection of its own; gives the status and the body.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}

/// The values of `names` at this moment, each summed over its labels.
pub fn read(address: SocketAddr, names: &[String]) -> io::Result<Vec<Option<f64>>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let (status, text) = get(address, "/metrics")?;
    if status != 200 {
        return Err(io::Error::other(format!("GET /metrics was answered with {status}")));
    }
    Ok(names.iter().map(|name| sum(&text, name)).collect())
}

/// The sum of a counter's samples; `None` where there is none.
fn sum(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        let values = rest.rsplit_once('}').map_or(rest, |(_, values)| values);
        // A timestamp may follow the value.
        values.split_whitespace().next()?.parse::<f64>().ok()
    });
    samples.fold(None, |sum, sample| Some(sum.unwrap_or(0.0) + sample))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_told_from_longer_names() {
        let text =
            "# TYPE a_total counter\na_total{path=\"x}\"} 2\na_total{path=\"y\"} 3.5 1700000000\na_total_more 7\nb 1\n";
        assert_eq!(sum(text, "a_total"), Some(5.5));
        assert_eq!(sum(text, "b"), Some(1.0));
        assert_eq!(sum(text, "a"), None);
    }
}
