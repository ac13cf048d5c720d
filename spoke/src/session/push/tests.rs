use std::time::Duration;

use attest_common::session::frame;
use attest_common::session::message::Push;

use super::*;
use crate::session::quic;
use crate::session::stubborn_hub::StubbornHub;

fn piece(bytes: &[u8], offset: usize, take: usize) -> Blob {
    let compressed = zstd::bulk::compress(bytes, 3).unwrap();
    let end = (offset + take).min(compressed.len());
    Blob {
        sha256: Digest::of(bytes).raw().to_vec(),
        size: bytes.len() as u64,
        offset: offset as u64,
        compressed_size: compressed.len() as u64,
        data: compressed[offset..end].to_vec(),
    }
}

#[tokio::test]
async fn all_pushes_together_take_a_bounded_room_and_give_it_back() {
    let room = Room::default();
    let mut first = room.enter().await.unwrap();
    let second = room.enter().await.unwrap();
    assert!(room.0.available_permits() < ARRIVING_BYTES_MAX);

    shrink(&mut first, 1_000);
    assert_eq!(room.0.available_permits(), ARRIVING_BYTES_MAX - 1_000);

    drop((first, second));
    assert_eq!(room.0.available_permits(), PUSHES_BYTES_MAX);
}

#[tokio::test]
async fn a_push_is_read_to_its_end_so_that_the_hub_knows_it_was_taken() {
    let mut hub = StubbornHub::granting(0);
    let (_endpoint, connection) = quic::dial(&hub.address, hub.spoke_tls()).await.unwrap();
    let hub = hub.accepted.recv().await.unwrap();
    let directive = ToSpokeBody::Directive(Push { directive: vec![1], plan: vec![] });
    let directive = frame::encode(&ToSpoke { body: Some(directive) }).unwrap();
    let unknown = frame::encode(&ToSpoke { body: None }).unwrap();
    for (frames, taken) in [
        (vec![], true),
        (vec![&unknown; FRAMES_AFTER_MAX], true),
        (vec![&unknown; FRAMES_AFTER_MAX + 1], false),
        (vec![&directive], false),
    ] {
        let mut stream = hub.open_uni().await.unwrap();
        stream.write_all(&directive).await.unwrap();
        let incoming = connection.accept_uni().await.unwrap();
        let receiving = tokio::spawn(async move {
            let room = Room::default();
            receive(&mut FrameReader::new(incoming, frame::FRAME_BYTES_MAX), &room)
                .await
                .map(|push| push.directive)
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        for frame in frames {
            // Refused streams take no more.
            let _ = stream.write_all(frame).await;
        }
        let _ = stream.finish();

        assert_eq!(receiving.await.unwrap().is_ok(), taken);
        if taken {
            assert_eq!(stream.stopped().await.unwrap(), None);
        }
    }
}

#[test]
fn a_blob_comes_together_from_its_pieces_in_order() {
    let text: Vec<u8> = (0..2_000_u32).flat_map(|i| (i * i).to_be_bytes()).collect();
    let first = piece(&text, 0, 100);

    let Added::More(open) = Assembly::begin(&first).unwrap().add(&first).unwrap() else {
        panic!("one piece of several is not the whole");
    };
    let Added::Done(digest, bytes) = open.add(&piece(&text, 100, usize::MAX / 2)).unwrap() else {
        panic!("all pieces are the whole");
    };

    assert_eq!((digest, bytes.as_ref()), (Digest::of(&text), text.as_slice()));
}

#[test]
fn a_blob_that_lies_about_itself_is_refused() {
    let text = b"hello hello hello hello";
    let whole = piece(text, 0, usize::MAX / 2);
    let reason = |blob: &Blob| {
        Assembly::begin(blob)
            .and_then(|a| a.add(blob))
            .map_or_else(|e| e.reason().as_str(), |_| "ok")
    };
    assert_eq!(reason(&whole), "ok");
    for (bad, expected) in [
        (Blob { size: 5, ..whole.clone() }, "BlobDigest"),
        (Blob { size: 100, ..whole.clone() }, "BlobDigest"),
        (Blob { size: u64::MAX, ..whole.clone() }, "Limit"),
        (Blob { offset: 1, ..whole.clone() }, "BlobDigest"),
        (Blob { sha256: vec![0; 32], ..whole.clone() }, "BlobDigest"),
        (Blob { sha256: vec![], ..whole }, "BlobDigest"),
    ] {
        assert_eq!(reason(&bad), expected, "{bad:?}");
    }
}
