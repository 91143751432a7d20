//! The calls of librdkafka that the safe crate does not offer: producing with a kept topic handle and
//! headers built in place, a partitioner that sees the record's opaque, a flush that ignores linger,
//! whether a failed record may have been written all the same, and the id of a topic.
//!
//! One of the two files with `unsafe`. Each block says why it is sound; the types keep handles from
//! outliving their client. Knows nothing of windows, topics' states, the log or tables.
//!
//! # The opaque
//! ```text
//! bit  0       1: a record of the held lane
//! bits 1..=12  what chooses the partition of a record without a key
//! bits 13..=63 the sequence (2^51: 70 years at a million a second)
//! ```
//! A record without a key would go to a random partition, and to another one when it is sent again; then a
//! partition would see it behind later records. So the partition follows from the record's own sequence,
//! in runs of 256 for the sake of batches.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{Producer as _, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::polled::Polled;
use crate::record::Sequence;

const _: () = assert!(usize::BITS == 64, "the opaque needs 64 bits");

/// A record's place as librdkafka carries it; see the module.
pub(crate) fn opaque(lane: bool, seq: Sequence, identity_seq: Sequence) -> usize {
    let hint = (identity_seq >> 8) & 0xfff;
    (seq as usize) << 13 | (hint as usize) << 1 | usize::from(lane)
}

/// (lane, sequence) of an opaque.
pub(crate) fn place(opaque: usize) -> (bool, Sequence) {
    (opaque & 1 == 1, (opaque >> 13) as Sequence)
}

/// A record to send. Borrowed: librdkafka copies it.
pub(crate) struct Message<'a, H> {
    pub(crate) opaque: usize,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) timestamp_ms: i64,
    /// Upper bound of how many headers there are.
    pub(crate) headers_max: usize,
    pub(crate) headers: H,
}

/// A handle that lives in a [`Native`] and dies before its client.
struct Topic(NonNull<sys::rd_kafka_topic_t>);

// SAFETY: librdkafka's objects may be used and destroyed from any thread.
unsafe impl Send for Topic {}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_topic_new, destroyed once, and before the client (field order of Native).
        unsafe { sys::rd_kafka_topic_destroy(self.0.as_ptr()) }
    }
}

/// The producer and its topic handles.
pub(crate) struct Native<C: ProducerContext<DeliveryOpaque = usize> + 'static> {
    /// First, so that it is dropped first.
    topics: Vec<Option<Topic>>,
    producer: Polled<C>,
    /// Index in [`PARTITIONERS`].
    partitioner: usize,
}

type PartitionerFn =
    unsafe extern "C" fn(*const sys::rd_kafka_topic_t, *const c_void, usize, i32, *mut c_void, *mut c_void) -> i32;

/// librdkafka's values of `partitioner`; the first is ours when none is given.
const PARTITIONERS: [(&str, PartitionerFn); 7] = [
    ("murmur2_random", sys::rd_kafka_msg_partitioner_murmur2_random),
    ("murmur2", sys::rd_kafka_msg_partitioner_murmur2),
    ("consistent_random", sys::rd_kafka_msg_partitioner_consistent_random),
    ("consistent", sys::rd_kafka_msg_partitioner_consistent),
    ("fnv1a_random", sys::rd_kafka_msg_partitioner_fnv1a_random),
    ("fnv1a", sys::rd_kafka_msg_partitioner_fnv1a),
    ("random", sys::rd_kafka_msg_partitioner_random),
];

/// Chooses the partition: by the opaque without a key, by the configured function with one.
unsafe extern "C" fn partition(
    topic: *const sys::rd_kafka_topic_t,
    key: *const c_void,
    key_bytes: usize,
    partitions: i32,
    topic_opaque: *mut c_void,
    message_opaque: *mut c_void,
) -> i32 {
    if key.is_null() && partitions > 0 {
        let hint = (message_opaque as usize >> 1) & 0xfff;
        return (hint % partitions as usize) as i32;
    }
    let function = match PARTITIONERS.get(topic_opaque as usize) {
        Some((_, function)) => *function,
        None => sys::rd_kafka_msg_partitioner_murmur2_random,
    };
    // SAFETY: librdkafka's own functions with librdkafka's own arguments. They do not look at the opaques.
    unsafe { function(topic, key, key_bytes, partitions, topic_opaque, message_opaque) }
}

impl<C: ProducerContext<DeliveryOpaque = usize>> Native<C> {
    /// `partitioner` is the property of that name, checked by librdkafka before.
    pub(crate) fn new(producer: Polled<C>, partitioner: Option<&str>) -> Self {
        let partitioner = PARTITIONERS
            .iter()
            .position(|(name, _)| Some(*name) == partitioner)
            .unwrap_or_default();
        Self {
            topics: Vec::new(),
            producer,
            partitioner,
        }
    }

    pub(crate) fn producer(&self) -> &Polled<C> {
        &self.producer
    }

    /// Makes the handle `index` for the topic `name`, unless it is there.
    ///
    /// # Errors
    /// librdkafka's reason; `InvalidTopic` for a name with a NUL.
    pub(crate) fn open_topic(&mut self, index: usize, name: &str) -> Result<(), RDKafkaErrorCode> {
        if self.topics.len() <= index {
            self.topics.resize_with(index + 1, || None);
        }
        let Some(place) = self.topics.get_mut(index) else {
            return Err(RDKafkaErrorCode::InvalidArgument);
        };
        if place.is_some() {
            return Ok(());
        }
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        let client = self.producer.client().native_ptr();
        // SAFETY: `client` is alive; `conf` is made here and handed to rd_kafka_topic_new, which owns it from
        // then on, also when it fails; `partition` is a function for the life of the process; the opaque is
        // a small number and never followed.
        let topic = unsafe {
            let conf = sys::rd_kafka_default_topic_conf_dup(client);
            sys::rd_kafka_topic_conf_set_partitioner_cb(conf, Some(partition));
            sys::rd_kafka_topic_conf_set_opaque(conf, self.partitioner as *mut c_void);
            sys::rd_kafka_topic_new(client, name.as_ptr(), conf)
        };
        let topic = NonNull::new(topic).ok_or_else(|| {
            // SAFETY: reads a thread-local number.
            RDKafkaErrorCode::from(unsafe { sys::rd_kafka_last_error() })
        })?;
        *place = Some(Topic(topic));
        Ok(())
    }

    /// Forgets the handle, so that librdkafka stops asking for a topic that is not there.
    pub(crate) fn close_topic(&mut self, index: usize) {
        if let Some(topic) = self.topics.get_mut(index) {
            *topic = None;
        }
    }

    /// Queues a message. Everything is copied; nothing blocks.
    ///
    /// # Errors
    /// librdkafka's code: the message was not queued.
    pub(crate) fn send<'a, H>(&self, index: usize, message: Message<'a, H>) -> Result<(), RDKafkaErrorCode>
    where
        H: Iterator<Item = (&'a str, &'a [u8])>,
    {
        let Some(Some(topic)) = self.topics.get(index) else {
            return Err(RDKafkaErrorCode::UnknownTopic);
        };
        let (value, value_bytes) = raw(message.value);
        let (key, key_bytes) = raw(message.key);
        // SAFETY: the headers are made here and owned by librdkafka after a successful call, destroyed here
        // after a failed one. Name, value and key are read during the calls only (F_COPY), with the lengths
        // of their slices. The variable arguments have the types that rdkafka.h gives for each tag, and the
        // list ends with VTYPE_END. Client and topic are alive, the topic being the client's own.
        unsafe {
            let headers = sys::rd_kafka_headers_new(message.headers_max);
            for (name, value) in message.headers {
                let added = sys::rd_kafka_header_add(
                    headers,
                    name.as_ptr().cast::<c_char>(),
                    name.len() as isize,
                    value.as_ptr().cast::<c_void>(),
                    value.len() as isize,
                );
                if added != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    sys::rd_kafka_headers_destroy(headers);
                    return Err(added.into());
                }
            }
            let result = sys::rd_kafka_producev(
                self.producer.client().native_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
                topic.0.as_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY as c_int,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                value,
                value_bytes,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                key,
                key_bytes,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
                message.opaque as *mut c_void,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP,
                message.timestamp_ms,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
                headers,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            );
            if result == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            sys::rd_kafka_headers_destroy(headers);
            Err(result.into())
        }
    }

    /// Sends what is queued now, whatever linger says; true once nothing is outstanding.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the client is alive.
        let result = unsafe { sys::rd_kafka_flush(self.producer.client().native_ptr(), timeout_ms) };
        result == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// Names brokers to ask where the cluster is, as `bootstrap.servers` does; those that are known stay. librdkafka keeps
    /// the text for the client's life.
    pub(crate) fn name_brokers(&self, list: &CStr) {
        // SAFETY: the client is alive, and copies the text.
        unsafe { sys::rd_kafka_brokers_add(self.producer.client().native_ptr(), list.as_ptr()) };
    }
}

/// Pointer and length; null for `None`, which Kafka tells from empty.
fn raw(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((std::ptr::null_mut(), 0), |bytes| {
        (bytes.as_ptr().cast::<c_void>().cast_mut(), bytes.len())
    })
}

/// The last header `name` of a message. (The safe iterator panics when a stranger's header name is no UTF-8.)
pub(crate) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &CStr) -> Option<&'m [u8]> {
    let mut headers = std::ptr::null_mut();
    let mut value = std::ptr::null();
    let mut bytes = 0_usize;
    // SAFETY: the message is alive and owns its headers; the value lies in them, `bytes` long, for as long as
    // the message is borrowed.
    unsafe {
        if sys::rd_kafka_message_headers(message.ptr(), &mut headers) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            || sys::rd_kafka_header_get_last(headers, name.as_ptr(), &mut value, &mut bytes)
                != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            || value.is_null()
        {
            return None;
        }
        Some(std::slice::from_raw_parts(value.cast::<u8>(), bytes))
    }
}

/// The metadata beside a partition's offset; empty where there are none. (The safe call panics when a stranger's are no UTF-8.)
pub(crate) fn offset_metadata(offsets: &TopicPartitionList, topic: &CStr, partition: i32) -> String {
    // SAFETY: the list is alive; the element belongs to it, and so do its metadata, `metadata_size` bytes long, which are
    // copied here.
    let bytes = unsafe {
        let element = sys::rd_kafka_topic_partition_list_find(offsets.ptr(), topic.as_ptr(), partition);
        match element.as_ref() {
            Some(element) if !element.metadata.is_null() => {
                std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size)
            }
            _ => return String::new(),
        }
    };
    String::from_utf8_lossy(bytes).into_owned()
}

/// [`crate::record::HEADER_WAL`] for [`header`].
pub(crate) const WAL: &CStr = c"tidegate-wal";
/// [`crate::record::HEADER_SEQ`] for [`header`].
pub(crate) const SEQ: &CStr = c"tidegate-seq";
/// [`crate::record::HEADER_RECEIVED`] for [`header`].
pub(crate) const RECEIVED: &CStr = c"tidegate-received";

/// Whether Kafka may have the message although its delivery failed.
pub(crate) fn maybe_persisted(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message of a delivery report is alive for as long as it is borrowed.
    let status = unsafe { sys::rd_kafka_message_status(message.ptr()) };
    status != sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// A reply queue or object of librdkafka with its own way to go.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    fn new(pointer: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        Some(Self(NonNull::new(pointer)?, destroy))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by the function that belongs to this destructor, and destroyed once.
        unsafe { self.1(self.0.as_ptr()) }
    }
}

/// What Kafka tells of a topic.
#[derive(Debug, Clone, Default)]
pub(crate) struct Described {
    /// The id that a broker gave the topic when it was made (base64, as Kafka's own tools print it), so that a
    /// topic deleted and made again under its name can be told from the old one. `None`: this broker has none.
    pub(crate) id: Option<String>,
    /// What this user may do, where it was asked for and the broker tells.
    pub(crate) rights: Option<Rights>,
}

/// See [`Described`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// Asks for one topic (DescribeTopics); `rights`: also for what this user may do with it.
///
/// # Errors
/// librdkafka's code when Kafka did not answer within `timeout`, or has no such topic.
pub(crate) fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    rights: bool,
    timeout: Duration,
) -> Result<Described, RDKafkaErrorCode> {
    /// What brokers without topic ids send: all zero.
    const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let out_of_memory = RDKafkaErrorCode::Fail;
    // SAFETY: the client is alive throughout; queue, collection, options and event are made here, checked for
    // null and destroyed by their own functions when they leave the scope, the event (last made) first. What
    // is read of the event (descriptions, id, operations, error) belongs to it and is copied before it goes; the
    // lists of descriptions and of operations are as long as the counts that come with them.
    unsafe {
        let queue = Owned::new(
            sys::rd_kafka_queue_new(client.native_ptr()),
            sys::rd_kafka_queue_destroy,
        )
        .ok_or(out_of_memory)?;
        let mut names = [name.as_ptr()];
        let topics = Owned::new(
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr().cast(), 1),
            sys::rd_kafka_TopicCollection_destroy,
        )
        .ok_or(out_of_memory)?;
        let options = Owned::new(
            sys::rd_kafka_AdminOptions_new(
                client.native_ptr(),
                sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            ),
            sys::rd_kafka_AdminOptions_destroy,
        )
        .ok_or(out_of_memory)?;
        let set =
            sys::rd_kafka_AdminOptions_set_request_timeout(options.0.as_ptr(), timeout_ms, std::ptr::null_mut(), 0);
        if set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(set.into());
        }
        if rights {
            let refused = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.0.as_ptr(), 1);
            if let Some(refused) = Owned::new(refused, sys::rd_kafka_error_destroy) {
                return Err(sys::rd_kafka_error_code(refused.0.as_ptr()).into());
            }
        }
        sys::rd_kafka_DescribeTopics(
            client.native_ptr(),
            topics.0.as_ptr(),
            options.0.as_ptr(),
            queue.0.as_ptr(),
        );
        // librdkafka answers at the request's timeout itself; a little later nothing more comes.
        let event = sys::rd_kafka_queue_poll(queue.0.as_ptr(), timeout_ms.saturating_add(1000));
        let event = Owned::new(event, sys::rd_kafka_event_destroy).ok_or(RDKafkaErrorCode::OperationTimedOut)?;
        let failed = sys::rd_kafka_event_error(event.0.as_ptr());
        if failed != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed.into());
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        let mut count = 0_usize;
        let descriptions = match NonNull::new(result.cast_mut()) {
            Some(result) => sys::rd_kafka_DescribeTopics_result_topics(result.as_ptr(), &mut count),
            None => std::ptr::null_mut(),
        };
        if descriptions.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() {
            let code = sys::rd_kafka_error_code(error);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(code.into());
            }
        }
        let mut described = Described::default();
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        if !id.is_null() {
            let text = sys::rd_kafka_Uuid_base64str(id);
            if !text.is_null() {
                let text = CStr::from_ptr(text).to_string_lossy().into_owned();
                described.id = (text != NONE).then_some(text);
            }
        }
        let mut count = 0_usize;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(description, &mut count);
        if rights && !operations.is_null() {
            let operations = std::slice::from_raw_parts(operations, count);
            described.rights = Some(Rights {
                read: operations.contains(&sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
                write: operations.contains(&sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
            });
        }
        Ok(described)
    }
}

/// The topic's id; see [`Described`].
///
/// # Errors
/// See [`describe`].
pub(crate) fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<String>, RDKafkaErrorCode> {
    describe(client, topic, false, timeout).map(|described| described.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_librdkafka_are_those_of_the_record() {
        assert_eq!(WAL.to_str(), Ok(crate::record::HEADER_WAL));
        assert_eq!(SEQ.to_str(), Ok(crate::record::HEADER_SEQ));
        assert_eq!(RECEIVED.to_str(), Ok(crate::record::HEADER_RECEIVED));
    }

    #[test]
    fn metadata_of_anybody_are_read() {
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0).set_metadata("1 7");
        list.add_partition("t", 1);
        assert_eq!(offset_metadata(&list, c"t", 0), "1 7");
        assert_eq!(offset_metadata(&list, c"t", 1), "");
        assert_eq!(offset_metadata(&list, c"other", 0), "");
        // SAFETY: the element and its metadata belong to the list, which is alive.
        unsafe {
            let element = sys::rd_kafka_topic_partition_list_find(list.ptr(), c"t".as_ptr(), 0);
            *(*element).metadata.cast::<u8>() = 0xff;
        }
        assert_eq!(offset_metadata(&list, c"t", 0), "\u{fffd} 7");
    }

    #[test]
    fn opaque_keeps_lane_and_sequence() {
        for seq in [0, 1, 255, 256, 1 << 40, (1 << 51) - 1] {
            for lane in [false, true] {
                assert_eq!(place(opaque(lane, seq, 77_777)), (lane, seq));
            }
        }
    }

    #[test]
    fn a_record_without_a_key_goes_to_the_same_partition_when_sent_again() {
        let partition_of = |opaque: usize| {
            // SAFETY: no pointer is followed for a null key.
            unsafe {
                partition(
                    std::ptr::null(),
                    std::ptr::null(),
                    0,
                    6,
                    std::ptr::null_mut(),
                    opaque as *mut c_void,
                )
            }
        };
        // The same identity through the main log and through the lane.
        assert_eq!(
            partition_of(opaque(false, 5000, 5000)),
            partition_of(opaque(true, 3, 5000))
        );
        let all: std::collections::BTreeSet<i32> = (0..20)
            .map(|run| partition_of(opaque(false, run * 256, run * 256)))
            .collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), vec![0, 1, 2, 3, 4, 5]);
    }
}
