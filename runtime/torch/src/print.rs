//! What a model prints, in the log line by line, whatever the process's standard output is.
//!
//! An instance [`enter`]s before it runs its method, so that the line has the model's name; what a thread of libtorch's own prints has
//! none. Invariant: a line has a bounded length.

use std::{cell::RefCell, sync::Arc};

/// Bytes of a line that are shown.
const MAX_LINE: usize = 4096;

thread_local! {
    /// Whose method this thread ran last.
    static MODEL: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// Has what models print go to the log. Once is enough for a process; more change nothing.
pub fn handle() {
    torch_shim::set_print_handler(printed);
}

/// From here on this thread runs `model`.
pub fn enter(model: &Arc<str>) {
    MODEL.with_borrow_mut(|current| {
        if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, model)) {
            *current = Some(Arc::clone(model));
        }
    });
}

fn printed(text: &str) {
    MODEL.with_borrow(|model| {
        for line in lines(text) {
            if let Some(model) = model {
                tracing::info!(model = &**model, "print: {line}");
            } else {
                tracing::info!("print: {line}");
            }
        }
    });
}

/// The lines of `text` that hold something, cut to [`MAX_LINE`].
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(|line| {
        let end = line.floor_char_boundary(MAX_LINE);
        line.get(..end).unwrap_or(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_one_and_an_endless_one_is_cut() {
        assert_eq!(lines("a b\n\n c\r\n").collect::<Vec<_>>(), ["a b", " c"]);
        assert_eq!(lines("").count(), 0);
        let long = "ä".repeat(MAX_LINE);
        assert_eq!(lines(&long).next().map(str::len), Some(MAX_LINE));
    }
}
