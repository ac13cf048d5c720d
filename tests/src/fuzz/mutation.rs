//! Mutations of inputs, chosen by a seed: the same seed gives the same inputs.

/// Longest mutated input, in bytes.
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Longest piece that is copied or removed, in bytes.
const PIECE_BYTES_MAX: usize = 64;
/// Texts that mean something to one of the formats.
const TOKENS: [&[u8]; 48] = [
    b"---\n",
    b"...\n",
    b"\n",
    b"\r\n",
    b"\t",
    b"  ",
    b": ",
    b"- ",
    b"? ",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!str ",
    b"!!binary ",
    b"!",
    b"|\n ",
    b">-\n ",
    b"#",
    b"\"",
    b"'",
    b"\\u0000",
    b"\\",
    b"%YAML 1.1\n",
    b"null",
    b"true",
    b"1e400",
    b"0x",
    b"-9223372036854775809",
    b"18446744073709551616",
    b".5",
    b"_",
    b"\xef\xbb\xbf",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x80\x10",
    b"0000",
    b"0001",
    b"ffff",
    b"refs/heads/",
    b"..",
    b"/",
];

/// A source of mutations.
#[derive(Clone, Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// Creates a source for a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// Returns an input of the corpus with one to eight changes.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.any_of(corpus);
        for _ in 0..=self.below(8) {
            self.change(&mut input, corpus);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let length = self.below(PIECE_BYTES_MAX).min(input.len() - at);
        match self.below(8) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << (self.state % 8);
                }
            }
            1 => {
                let byte = self.next().to_le_bytes()[0];
                input.insert(at, byte);
            }
            2 => drop(input.drain(at..at + length)),
            3 => {
                let piece = input.get(at..at + length).unwrap_or_default().to_vec();
                let place = self.below(input.len() + 1);
                input.splice(place..place, piece);
            }
            4 => {
                // A part of another input.
                let other = self.any_of(corpus);
                let start = self.below(other.len() + 1);
                let end = (start + self.below(4 * PIECE_BYTES_MAX)).min(other.len());
                input.splice(at..at, other.get(start..end).unwrap_or_default().to_vec());
            }
            5 => {
                let other = self.any_of(corpus);
                let start = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(other.get(start..).unwrap_or_default());
            }
            _ => {
                let index = self.below(TOKENS.len());
                let token = TOKENS.get(index).copied().unwrap_or_default();
                let replaced = if self.below(2) == 0 { length.min(token.len()) } else { 0 };
                input.splice(at..at + replaced, token.iter().copied());
            }
        }
    }

    fn any_of(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let index = self.below(corpus.len().max(1));
        corpus.get(index).cloned().unwrap_or_default()
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }

    /// Next number of a xorshift generator.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_again() {
        let corpus = [b"a: 1\n".to_vec(), b"{}".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..100).map(|_| mutator.mutate(&corpus)).collect::<Vec<_>>()
        };

        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().any(|input| !corpus.contains(input)));
    }
}
