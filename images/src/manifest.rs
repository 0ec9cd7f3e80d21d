//! The bytes of a manifest: magic, version, features, records, hash.

use prost::Message as _;

use crate::error::Flaw;
use crate::proto::{Features, Manifest};
use crate::{Error, Result};

pub(crate) const MAGIC: &[u8; 8] = b"ckptdman";
/// The version of the format, of manifests and segments alike.
pub(crate) const VERSION: u32 = 1;
/// Magic, version, length of the features, length of the records.
const HEADER: usize = 24;
const HASH: usize = blake3::OUT_LEN;
/// Bounds what a reader takes into memory before it knows anything; ten thousand processes take a tenth of it.
pub(crate) const LIMIT: usize = 256 << 20;

/// A process runs on whose leader has ended.
const ENDED_LEADER: &str = "ended-leader";
/// Features of the format that this version knows.
const KNOWN: &[&str] = &[ENDED_LEADER];

/// What a reader has to know to read these records.
fn features(manifest: &Manifest) -> Features {
    let processes = manifest.snapshot.iter().flat_map(|it| &it.processes);
    let mut threads = processes.flat_map(|process| &process.threads);
    let mut features = Features::default();
    if threads.any(|thread| thread.ended.is_some()) {
        features.incompatible.push(ENDED_LEADER.to_owned());
    }
    features
}

pub(crate) fn encode(manifest: &Manifest) -> Result<Vec<u8>> {
    encode_with(&features(manifest), manifest)
}

fn encode_with(features: &Features, manifest: &Manifest) -> Result<Vec<u8>> {
    let (features, body) = (features.encode_to_vec(), manifest.encode_to_vec());
    let bytes = HEADER + features.len() + body.len() + HASH;
    if bytes > LIMIT {
        return Err(Error::TooLarge {
            bytes,
            limit: LIMIT,
        });
    }
    let mut out = Vec::with_capacity(bytes);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(features.len() as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend_from_slice(&features);
    out.extend_from_slice(&body);
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    Ok(out)
}

/// The records, once magic, version, hash and features are right.
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, Flaw> {
    let damage = |offset: usize, what: &str| Flaw::at(offset as u64, what);
    let (header, rest) = bytes
        .split_at_checked(HEADER)
        .ok_or_else(|| damage(bytes.len(), "it ends within its header"))?;
    if !header.starts_with(MAGIC) {
        return Err(damage(0, "it does not begin like a manifest"));
    }
    // A newer version may hash otherwise, so that its number counts before the hash does.
    let version = le32(&header[8..]);
    if version != VERSION {
        return Err(Flaw::Unsupported(format!(
            "version {version} of the format"
        )));
    }
    let (features, records) = (le32(&header[12..]) as u64, le64(&header[16..]));
    let said = features
        .checked_add(records)
        .and_then(|length| length.checked_add((HEADER + HASH) as u64));
    if said != Some(bytes.len() as u64) {
        return Err(damage(16, "it is longer or shorter than it says"));
    }
    let (content, hash) = rest.split_at(rest.len() - HASH);
    if blake3::hash(&bytes[..HEADER + content.len()]).as_bytes() != hash {
        return Err(damage(
            0,
            "its content does not have the hash it was written with",
        ));
    }
    // `features` is at most the length of `content`.
    let (features, records) = content.split_at(features as usize);
    let at = HEADER + features.len();
    let features = Features::decode(features)
        .map_err(|error| damage(HEADER, &format!("the features are not readable: {error}")))?;
    if let Some(unknown) = features
        .incompatible
        .iter()
        .find(|name| !KNOWN.contains(&name.as_str()))
    {
        return Err(Flaw::Unsupported(format!("the feature {unknown:?}")));
    }
    decode_records(records, at as u64)
}

/// The records alone; `at` is where they lie in the file.
pub(crate) fn decode_records(records: &[u8], at: u64) -> Result<Manifest, Flaw> {
    let manifest = Manifest::decode(records)
        .map_err(|error| Flaw::at(at, format!("the records are not readable: {error}")))?;
    let flaw = |what: &str| Err(Flaw::at(at, what));
    if manifest.snapshot.is_none() {
        return flaw("the job's snapshot is missing");
    }
    if manifest
        .segments
        .iter()
        .any(|segment| segment.id.len() != 16 || segment.hash.len() != HASH)
    {
        return flaw("the name or hash of a segment has a wrong length");
    }
    let mut ids: Vec<_> = manifest
        .segments
        .iter()
        .map(|segment| &segment.id)
        .collect();
    ids.sort();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return flaw("a segment is named twice");
    }
    if manifest
        .spaces
        .windows(2)
        .any(|pair| pair[0].space >= pair[1].space)
    {
        return flaw("the spaces are not in order");
    }
    let segments = manifest.segments.len();
    if manifest
        .spaces
        .iter()
        .flat_map(|space| &space.layers)
        .any(|layer| layer.segment as usize >= segments)
    {
        return flaw("a layer names a segment that is not listed");
    }
    Ok(manifest)
}

/// The little-endian number that `bytes` begin with; they are long enough wherever this is called.
pub(crate) fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map_or(0, u32::from_le_bytes)
}

/// As [`le32`].
pub(crate) fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
