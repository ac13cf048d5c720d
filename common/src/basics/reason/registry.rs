//! The table of reasons, by subject: word, meaning, what to do.

use super::Subject;

macro_rules! registry {
    ($( $title:literal, seen in $seen:literal {
        $( $word:ident: $meaning:literal, $remedy:literal; )+
    } )+) => {
        /// The cause of a failure or of a pending state, in one stable word.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(
            #[doc = $meaning]
            $word,
        )+)+ }

        /// Every reason by subject, in the order of the page.
        pub const SUBJECTS: &[Subject] = &[$(
            Subject { title: $title, seen: $seen, reasons: &[$( Reason::$word, )+] },
        )+];

        impl Reason {
            /// Every reason, in the order of the page.
            pub const ALL: &[Self] = &[$($( Self::$word, )+)+];

            /// Returns the word.
            pub const fn as_str(self) -> &'static str {
                match self { $($( Self::$word => stringify!($word), )+)+ }
            }

            /// Returns what the reason means.
            pub const fn meaning(self) -> &'static str {
                match self { $($( Self::$word => $meaning, )+)+ }
            }

            /// Returns what an operator can do.
            pub const fn remedy(self) -> &'static str {
                match self { $($( Self::$word => $remedy, )+)+ }
            }

            pub(super) fn of_word(word: &str) -> Option<Self> {
                match word {
                    $($( stringify!($word) => Some(Self::$word), )+)+
                    _ => None,
                }
            }
        }
    };
}

registry! {
    "States", seen in "phases and conditions of applications, reports from spokes" {
        Synced: "every object matches what CI signed and is healthy", "none";
        Progressing: "a directive is in progress; the message names what remains",
            "wait; if it persists, see the object named in the message";
        OutOfSync: "live objects differ from the signed content, and self-heal is off",
            "set `syncPolicy.automated.selfHeal`, or revert the edit";
        Degraded: "an applied object is unhealthy, or an object could not be applied", "see the object named in the message";
        Refused: "a document was refused; the previous release keeps running", "see the reason for the refusal";
        Removed: "the application has been removed from the destination", "none";
        Ready: "all destinations run the content that is in Git and signed by CI", "none";
        Verified: "every destination runs what CI signed", "none";
        SourceRead: "the repository was read", "none";
        ReadOnly: "the hub's credential can read the repository but not push to it", "none";
        Pending: "no state has been reported yet", "wait for the first reconcile or report";
        Deleting: "the application is being removed from its destinations", "wait; the message names what remains";
        Current: "every object is healthy", "none";
        Suspended: "an object is suspended", "if this is not intended, resume the object";
        InProgress: "an object has not reached its desired state", "wait; the message names the object";
        Terminating: "an object is being deleted", "wait; if it persists, see the object's finalizers";
        Failed: "an object has failed", "see the status of the object named in the message";
        Unhealthy: "an object that gates the rollout has failed", "see the object named in the message";
        PodsFailing: "pods of the newest ReplicaSet crash, cannot pull their image, or find no node",
            "see the pod named in the message; the destination returns to its newest good plan";
        PruneGuard: "deleting the objects that are no longer rendered would exceed `remove.maxPrunePercent`, which counts from ten \
            objects on, and 0 always",
            "raise the limit in the cluster's trust policy, or delete the objects manually";
    }

    "Waiting", seen in "conditions, the hub's log and metrics, `attest gitops app`" {
        AwaitingReceipts: "the commit changes the rendering, but CI has not signed a release for it",
            "wait for CI, or check why `attest run` failed";
        AwaitingSync: "a release is ready, but `syncPolicy` does not set `automated`", "`attest gitops app sync NAME`";
        AwaitingStage: "a rollout by stages orders it later", "`attest gitops rollout get NAME` shows what the rollout waits for";
        AwaitingApproval: "a stage of a rollout waits for an operator", "`attest gitops rollout promote NAME`";
        RolloutPaused: "an operator paused the rollout", "`attest gitops rollout resume NAME`";
        RolloutFailed: "the rollout failed; clusters that it did not finish have returned to their last good release",
            "correct the commit, or `attest gitops rollout retry NAME`";
        RolloutAborted: "an operator aborted the rollout", "correct the commit, or `attest gitops rollout retry NAME`";
        PartiallyFailed: "the rollout succeeded, but some clusters failed, as the stage allows",
            "`attest gitops rollout get NAME` names them";
        ProgressDeadlineExceeded: "a cluster was not healthy within the progress deadline of its stage",
            "see the objects in the message of the destination; raise `progressDeadline` if it needs more time";
        Superseded: "a newer rollout of the application has begun", "none";
        SyncHeld: "automatic sync is held since `rollout rollback`", "`attest gitops rollout resume NAME`, or commit other content";
        StateRegression: "a spoke holds more than the hub has ordered, as after a restore of the hub from a backup",
            "check what runs, then `attest gitops rollout adopt NAME`";
        AwaitingCluster: "the cluster has not connected yet, so its policy is unknown", "check `attest gitops cluster get NAME`";
        SpokeTooOld: "the cluster's spoke does not support what the release needs", "upgrade the spoke";
        AwaitingReport: "the directive has been sent, or will be sent when the spoke connects", "check whether the spoke is connected";
        OtherPlan: "the spoke is still running a plan other than the newest one", "wait; if it persists, see the spoke's log";
        RendererMismatch: "CI and the hub use different versions of the renderer", "install the same version on both";
        ContentUnknown: "the hub has no copy of the content that runs at the destination, so it cannot compare",
            "sync the application, then compare again";
        ReconcilePanicked: "the reconcile ended by a panic; what is shown is older",
            "report it as a defect with the hub's log; the next poll tries again";
        ReconcileTimeout: "the reconcile did not finish in time; it continues", "`attest gitops app get NAME` shows the outcome";
        SpokeDisconnected: "the cluster is not connected; its last report may be stale",
            "check the spoke and its network connection to the hub";
    }

    "Signatures and envelopes", seen in "refusals by spokes, conditions, `attest verify`" {
        SignatureInvalid: "no trusted key signed the document",
            "sign with a key in the trust policy; if a spoke refused it, find out who sent it";
        UntrustedKey: "no key that the cluster trusts for this application signed the release",
            "sign with such a key, or add the key to the trust policy";
        PayloadType: "the envelope contains a different kind of document than expected", "find out what produced the file";
        EnvelopeMalformed: "the envelope is not a valid DSSE envelope in JSON", "regenerate the file";
        EnvelopeBase64: "the payload of the envelope is not valid base64", "regenerate the file";
        JsonMalformed: "the bytes are not a single well-formed JSON document without duplicate keys", "correct the document";
        JsonFields: "the JSON document has an unknown field", "remove the field, or use a matching version";
        JsonForm: "the JSON document does not have the expected structure", "correct the field named in the message";
        StatementInvalid: "the signed bytes are not a valid in-toto statement", "produce the statement with `attest run`";
        Limit: "a size or count limit is exceeded; the message names it", "reduce the size or count named in the message";
    }

    "Keys, names and identifiers", seen in "API and command line, `attest verify`, trust policies" {
        KeyFormat: "the text is not a single PEM block with an Ed25519 key",
            "`attest key show FILE` prints a public key, `attest key gen` creates one";
        KeyWeak: "the public key is weak or not canonical", "create another with `attest key gen`";
        KeyIdFormat: "the text is not a valid key id", "use `ed25519:` followed by 64 hexadecimal digits";
        KeyUnknown: "no key has this alias", "`attest gitops key list` shows the aliases";
        AliasInvalid: "the alias contains characters that are not allowed", "use 1 to 253 letters, digits, `.`, `-` and `_`";
        DigestFormat: "the text is not a valid digest", "use `sha256:` followed by 64 lowercase hexadecimal digits";
        NameInvalid: "the text is not a valid name", "use at most 63 lowercase letters, digits and `-`";
        ClusterIdInvalid: "the text is not a valid cluster id", "use the form `c-0123456789abcdef`";
    }

    "Directives, plans and records", seen in "refusals and logs of spokes, the hub's log and metrics" {
        DocumentInvalid: "a directive, plan or heartbeat is malformed or has an unknown version", "use matching versions of hub and spoke";
        AudienceMismatch: "the directive or heartbeat is for another cluster", "find out who sent it: the hub or a party with its key";
        LifetimeTooLong: "the document is valid for longer than permitted", "find out who sent it";
        IssuedInFuture: "the document was issued in the future", "correct the clocks of hub and cluster";
        Expired: "the document has expired", "check the clocks; the hub issues it again";
        SequenceReplayed: "the directive is not newer than one already admitted from the same hub key",
            "none after a reconnect; otherwise find out who sent it; for a hub behind it, `attest spoke reset APP -n NS --hub-key KEYID`";
        SequenceEquivocation: "two different directives have the same sequence", "treat the hub's signing key as compromised";
        ClockRollback: "the spoke's clock is behind a time that it has recorded",
            "correct the clock; if the recorded time was wrong, run `attest spoke accept-state --kubeconfig F`";
        PlanDigest: "the plan is not the one that the directive names", "find out who sent it";
        PlanMismatch: "the plan contradicts the release that it names, or a directive is about another plan than the destination's",
            "treat the hub as compromised, or update it";
        GenerationRegressed: "the directive is of an older rollout or attempt than one that the spoke has carried out",
            "`attest gitops rollout adopt` after a restore from a backup; otherwise treat the hub as compromised";
        PlanAborted: "the plan failed at this destination before, and is not tried again at the same attempt",
            "remove the cause, then `attest gitops rollout retry`";
        RollbackNotAllowed: "the directive orders a return to a plan that is not among the good plans of the destination",
            "`attest release --from COUNTER` signs an older release again; `rollback.lastGood` is the number of older plans kept";
        BlobDigest: "a blob is missing, or is not the one that the plan names", "find out who sent it";
        HookNotAllowed: "the plan has hooks, which are not supported", "use matching versions of hub and spoke";
        CapNotSupported: "the directive orders a part of a rollout, which the spoke cannot carry out", "update the spoke";
        SyncNonce: "the heartbeat does not belong to this connection, or is older than one already seen", "find out who sent it";
        NothingToRemove: "the application is not deployed at the destination", "none";
        RemoveNotAllowed: "the trust policy does not allow the hub to remove the application",
            "set `remove: {allow: true}` and run `attest trust install`, or remove the application with credentials for the cluster";
        StateLost: "records that the spoke has written are missing, so it cannot detect replays",
            "find out who deleted Secrets in `attest-spoke`; then run `attest spoke accept-state --kubeconfig F`";
        OwnedByOther: "an object belongs to another application or destination of the cluster",
            "rename the object, or remove it from one of them";
        AdmissionRateLimited: "directives arrive faster, or write more, than the limits allow; the newest of each destination waits",
            "none, unless it persists; then check what the hub sends and why";
        RecordConflict: "another process wrote the destination's record; the spoke reloads it",
            "if it persists, check that only one spoke runs";
        RecordUnreadable: "a record of the spoke cannot be read", "restore the Secret, or reset the destination with `attest spoke reset`";
        ContentLost: "stored content of a plan is missing or damaged; the spoke requests it from the hub",
            "wait; check who deletes Secrets in `attest-spoke`";
    }

    "Releases, receipts and content", seen in "refusals by spokes, conditions, `attest verify`, `attest release`" {
        ApplicationMismatch: "the release is for another application", "sign a release for this application";
        ReleaseExpired: "the release has expired", "sign it again with `attest release`";
        ReleaseMalformed: "the release predicate is malformed", "produce the release with `attest run`";
        CounterAhead: "the release counter is more than a day ahead of the clock", "correct the clock in CI";
        CounterRegressed: "the release counter is lower than that of a release that has already run",
            "`attest release --from COUNTER` signs it with a new counter";
        SourceChanged: "the destination is bound to another repository", "`attest spoke reset` on the cluster removes the binding";
        RenderUnknown: "the release has no render with this name", "correct the name; attest.yaml lists the renders";
        RenderMismatch: "the render is not the one for this cluster and namespace", "correct `namespace` of the render in attest.yaml";
        RenderAmbiguous: "several renders match the same cluster and namespace", "give each a different fixed namespace in attest.yaml";
        TargetMismatch: "the release has no render for this cluster or environment", "add one to attest.yaml";
        ContentDigest: "the content is not what CI signed",
            "revert the edit, or run CI on it; if a spoke refused it, treat the hub as compromised";
        ContentFormat: "the rendering does not have the expected format", "use matching versions";
        ObjectCount: "the rendering has a different number of objects than CI signed", "find out who sent it";
        AttestationMissing: "the release does not name exactly one receipt of a required kind",
            "run all steps of attest.yaml and sign again";
        AttestationNotDistinct: "one receipt is used for two attestations", "run all steps of attest.yaml and sign again";
        AttestationUnknown: "no rule exists for an attestation", "use build, test or security-scan";
        AttestationStale: "the scan is older than `maxScanAgeHours` in the trust policy, is dated in the future or has no timestamp",
            "scan again with `attest run` or `attest release`";
        NoReceiptRequired: "the application requires receipts, but neither it nor the trust policy names an attestation",
            "set `receiptVerification.requiredAttestations`";
        ReceiptMissing: "a receipt that the release names was not delivered", "commit all files below `.attest`";
        PredicateType: "a receipt has a different predicate type than its attestation requires", "produce it with `attest run`";
        PredicateMalformed: "the scan contains no list of results", "use a scanner with a supported output";
        SubjectMismatch: "a receipt is for another rendering", "run CI on this commit";
        SubjectIncomplete: "the scan does not cover an image of the rendering", "scan all images";
        BuilderParameters: "the build receipt has a builder id, type or parameter that the policy does not allow",
            "add the builder id to the trust policy, or build with `attest run`";
        SourceMismatch: "the build receipt names a different repository or commit than the release", "run CI on this commit";
        TestFailed: "the tests did not pass", "fix the failing tests";
        Vulnerable: "the scan found a vulnerability of high or unknown severity", "update the component named in the message";
    }

    "Trust policies", seen in "conditions, refusals by spokes, `attest trust`, `attest verify`" {
        NoTrustPolicy: "the cluster has no usable trust policy for this spoke", "`attest trust install POLICY --kubeconfig F`";
        TrustPolicyInvalid: "the trust policy cannot be used; the message names the field", "correct the policy and install it again";
        TrustPolicyOtherCluster: "the trust policy is for another cluster", "use the policy of this cluster";
        RoleKeyOverlap: "a key is both a CI key and a hub key", "use different keys";
        ApplicationNotAllowed: "no entry of the trust policy names the application", "add it to the policy";
        SourceNotAllowed: "the trust policy does not allow the repository for the application", "add it to the policy";
        NamespaceNotAllowed: "the trust policy does not allow the namespace, or an object is in a different one",
            "add the namespace to the policy, or correct the object";
        TooManyNamespaces: "the application already uses as many namespaces as the trust policy allows",
            "raise `maxNamespaces`, or remove the application from one of them";
        PolicyFloor: "the application requests a weaker mode than the trust policy requires", "raise `spec.verification.policy`";
        TrustInRepository: "the trust policy or keys are inside the repository that they verify", "keep them outside";
        TrustFileMalformed: "a file with trusted keys cannot be used", "correct the file";
        TrustFileUnreadable: "a file with trusted keys cannot be read", "check the path and permissions";
        NoTrustedKey: "there is no key to verify with", "pass `--trust-policy`, or run `attest trust key add`";
    }

    "Objects", seen in "refusals by spokes, conditions, `attest verify`, `attest run`" {
        KindNotAllowed: "the trust policy does not allow objects of this kind",
            "add the kind to the policy entry, then run `attest trust install`";
        KindUnknown: "neither the cluster nor the rendering defines the kind, or the API server does not serve it",
            "install its definition or its API server";
        LabelNotAllowed: "the Namespace object sets labels or annotations that control what pods may do or where they run",
            "remove those of `kubernetes.io`, `k8s.io`, `openshift.io` and `cattle.io`; the cluster's operator sets them";
        ImageUnpinned: "the release names no digest for an image",
            "set `from:` in the `images[]` entry of attest.yaml, or pin the digest in Git";
        ImageAmbiguous: "the release names two digests for one image", "build each image only once";
        ImageDigestDiffers: "attest.yaml sets a different digest than the step produced", "correct `digest` in the entry";
        ImageUnmatched: "no rendered object uses an image listed in attest.yaml", "correct the name, or remove the entry";
        ObjectDuplicate: "an object appears twice", "remove one of the two";
        ObjectShape: "a document is not a complete Kubernetes object", "complete it, or move the file elsewhere";
        ObjectMetadata: "an object has a field that only the API server writes", "remove the field";
        ObjectReserved: "an object has a reserved label or annotation", "remove it";
    }

    "Applying objects", seen in "reports from spokes, conditions" {
        FieldConflict: "an object already exists and another manager owns its fields",
            "delete it, or set `Adopt=true` in the application and `adopt: true` in the trust policy";
        NotAllowed: "the object is not part of the admitted content", "report it as a bug";
        WatchForbidden: "the spoke may not watch a kind in the namespace; it recreates its bindings and does not revert drift of that kind",
            "if it persists, run `attest trust install`, which grants the rights for the policy's extra kinds";
        WatchUnreadable: "the spoke cannot parse the API server's response for a kind; it does not revert drift that it cannot observe",
            "check which server responds at the API server's address, and what was written to the objects of that kind";
        Forbidden: "the API server denied access (403)", "check the roles and bindings of the spoke and of the application's account";
        NotFound: "the object or its kind does not exist (404)", "check that the namespace and the definition of the kind exist";
        Conflict: "the object or record was modified concurrently", "none; it is retried automatically";
        Invalid: "the API server rejected the object (400, 422)", "correct the field named in the message";
        ApiServerError: "the API server returned an error", "see the API server's log";
        ApiServerTimeout: "the API server did not respond in time", "check the API server";
        ApiServerUnreachable: "the API server cannot be reached", "check the API server and the network";
        ResponseUnreadable: "the response of the API server cannot be parsed", "check which server responds at the API server's address";
        RequestInvalid: "a request to the API server cannot be built", "report it as a bug";
    }

    "The spoke and its cluster", seen in "the spoke's log, `attest spoke status`" {
        Kubeconfig: "the kubeconfig cannot be used", "check the path, permissions and content of `--kubeconfig`";
        Credentials: "credentials cannot be read or written", "check the permissions of the kubeconfig";
        NotInCluster: "the spoke or the hub does not run in a cluster", "pass `--kubeconfig FILE`";
        KubernetesClient: "the Kubernetes client cannot be created", "check the kubeconfig and the certificates in it";
        TokenMissing: "the API server returned no token", "check the rights of the spoke's account";
        IdentityMalformed: "the Secret with the identity cannot be used", "delete the Secret and register the cluster again";
        IdentityConflict: "the Secret with the identity was deleted or replaced", "check that only one spoke runs";
        HubStale: "the hub's heartbeat is overdue: newer directives may be withheld", "check the hub and the connection";
        AddressesFile: "`--addresses-file` cannot be written", "check the path and permissions";
    }

    "Joining and registration", seen in "logs of hub and spoke, API, `attest gitops cluster`, metric `attest_fleet_joins_total`" {
        JoinToken: "the join token is missing, unreadable, mistyped or already used",
            "create another with `attest gitops cluster token create`";
        JoinRefused: "the hub refused the join; the message gives the hub's reason", "see the hub's reason";
        JoinLimit: "the hub is already processing the maximum number of joins", "none; the spoke retries";
        TokenFormat: "the text is not a valid join token", "copy the whole token";
        TokenChecksum: "the join token is mistyped or truncated", "copy the whole token";
        TokenRefused: "the join token is not valid", "create another with `attest gitops cluster token create`";
        TokenRevoked: "the join token was revoked", "create another with `attest gitops cluster token create`";
        TokenExpired: "the join token has expired", "create another with `attest gitops cluster token create`";
        TokenUsed: "the join token has already been used; if another identity used it, it may have been stolen",
            "create another with `attest gitops cluster token create`";
        TokenUnknown: "no token has this id", "`attest gitops cluster token list` shows the ids";
        TokenLifetime: "the requested lifetime of a token is out of range", "request a shorter one";
        OtherIdentity: "a spoke presented a `cluster rejoin` token that is bound to another spoke",
            "find out who has the token; it remains valid for the intended spoke unless you run `attest gitops cluster token revoke ID`";
        AlreadyRegistered: "the spoke is already registered", "none";
        IdentityProof: "the spoke did not prove that it has its identity key", "use matching versions of hub and spoke";
        KubeSystemUid: "the UID of the kube-system namespace is missing or malformed", "check that the spoke can read that namespace";
        NameTaken: "the name is in use", "use another name, or remove the other one first";
        ClusterUnknown: "no cluster has this name or id", "`attest gitops cluster list` shows the registered clusters";
        ClusterAmbiguous: "several clusters have this name", "pass the id of one of them";
        ClusterPending: "the cluster's spoke has joined but has not been accepted",
            "`attest gitops cluster accept NAME --fingerprint SHA256:…`, with the fingerprint from the spoke's log";
        ClusterEvicted: "`cluster evict` revoked the cluster's certificate", "`attest gitops cluster rejoin NAME --kubeconfig F`";
        ClusterRevoked: "the identity of the cluster's spoke is revoked permanently",
            "delete the spoke's Secret `attest-identity` to join with a new identity";
        ClusterRejected: "the hub rejects the spoke's certificate; the message gives the cause",
            "to reconnect the cluster, run `attest gitops cluster rejoin NAME --kubeconfig F`";
        FingerprintMismatch: "the cluster's fingerprint differs from the one given", "compare it with the fingerprint in the spoke's log";
        HubKeyPin: "the hub signs plans with a key that the trust policy does not pin", "install the trust policy of this hub";
        KeyGeneration: "a TLS key cannot be generated", "check the system's random number generator";
        Exporter: "the proof of identity cannot be bound to the connection", "use matching versions of hub and spoke";
        ClusterIdMismatch: "the hub issued a certificate for another cluster", "find out which server responds at the hub's address";
        Randomness: "the operating system provides no randomness", "check the system's random number generator";
    }

    "Certificates and TLS", seen in "logs of hub and spoke, API" {
        CertificateExpired: "the certificate expired while the spoke was disconnected",
            "`attest gitops cluster rejoin NAME --kubeconfig F`";
        CertificateReplaced: "the cluster has joined again with another certificate",
            "none; if unexpected, find out who has the identity key";
        CertificateNotCurrent: "the certificate is from before the cluster was evicted or joined again",
            "`attest gitops cluster rejoin NAME --kubeconfig F`, unless the cluster is connected: then find out who holds the certificate";
        IdentityCopied: "a certificate was presented after a newer one, or two processes alternate on it: two spokes have one identity, \
            and neither is admitted",
            "find out who has the identity, then `attest gitops cluster rejoin NAME --kubeconfig F`";
        CertificateChain: "the issued certificate is not signed by a pinned authority",
            "find out which server responds at the hub's address";
        CertificateIdentity: "the issued certificate is for another identity", "find out which server responds at the hub's address";
        CertificateLifetime: "the validity of the issued certificate is out of range", "correct the clocks of hub and cluster";
        CertificateRenewal: "the hub's certificate cannot be renewed", "see the message; check the hub's home";
        NoCertificate: "the peer presented no certificate", "use an operator's certificate of this hub";
        MalformedCertificate: "a certificate is not well-formed X.509", "issue it again";
        AuthorityAsLeaf: "a CA certificate was presented as a leaf certificate", "issue a leaf certificate";
        KeyUsage: "the key usage of a certificate is wrong", "issue it again";
        ExtendedKeyUsage: "the extended key usage of a certificate is wrong", "issue it again";
        SpiffeId: "a certificate has no valid ATTEST identity", "issue it again";
        MalformedPin: "a pin of a certificate authority is malformed", "use `sha256:` followed by 64 lowercase hexadecimal digits";
        NotPinned: "the certificate authority of the peer is not pinned",
            "check `hub.caPins` in the trust policy; if it is correct, find out which server responds at the hub's address";
        NoPin: "no certificate authority is pinned", "add the hub's pin to the trust policy";
        PeerRole: "the peer's certificate is for another role", "use the endpoint for that role";
        TrustDomain: "the certificate or name belongs to another trust domain", "use certificates of this hub";
        HostName: "the text is not a valid host name", "correct the address";
        MalformedAuthority: "the certificate of the hub's authority is malformed", "restore the hub's home from a backup";
        AuthorityKey: "the key of the hub's authority is malformed or does not match its certificate",
            "restore the hub's home from a backup";
        IssueFailed: "a certificate cannot be issued", "see the message";
        MalformedChain: "a file does not contain a valid certificate chain", "restore or issue it again";
        MalformedKey: "a file does not contain a valid private key", "restore or issue it again";
        UnreadableFile: "a certificate file cannot be read", "check the path and permissions";
        UnwritableFile: "a certificate file cannot be written", "check the path, permissions and free space";
        Alpn: "the peer did not negotiate an ATTEST protocol", "check that the peer is a hub or a spoke";
        NoAuthority: "there is no usable certificate authority for clients", "restore the hub's home from a backup";
        TlsConfiguration: "the certificate or key cannot be used for TLS", "issue it again";
        TlsCrypto: "the TLS library has no cipher for QUIC", "use a supported build";
        RequestTooLarge: "the certificate request is too large", "use matching versions of hub and spoke";
        MalformedRequest: "the certificate request is not well-formed", "use matching versions of hub and spoke";
        RequestKey: "the certificate request is not for a strong Ed25519 key", "use matching versions of hub and spoke";
        RequestRefused: "the signature of the certificate request is invalid", "use matching versions of hub and spoke";
    }

    "Connections between hub and spoke", seen in "logs of hub and spoke" {
        HubAddress: "the text is not a valid hub address", "pass `--hub HOST:PORT`";
        Socket: "a socket cannot be opened", "see the message";
        ConnectionLost: "the connection was lost or cannot be established", "check the network; the spoke reconnects";
        PeerTimeout: "the peer did not respond in time", "check the network and the load of the peer";
        WriteTimeout: "the peer did not read the sent data in time", "check the network and the load of the peer";
        HubClosed: "the hub closed the session; the message gives the cause", "see the cause; the spoke reconnects";
        HubStopping: "the hub is stopping", "none; the spoke reconnects";
        SessionReplaced: "the spoke opened a newer session", "none; if it repeats, check that only one spoke runs";
        Renewed: "the certificate was renewed; the spoke reconnects with the new one", "none";
        PolicyChanged: "the trust policy changed; the spoke reconnects", "none";
        UnexpectedMessage: "the hub sent an unexpected message", "use matching versions of hub and spoke";
        ProtocolVersion: "hub and spoke have no protocol version in common", "use matching versions of hub and spoke";
        HelloInvalid: "the first message of the spoke is invalid", "use matching versions of hub and spoke";
        FrameTooLarge: "a frame exceeds the limit", "use matching versions of hub and spoke";
        FrameMalformed: "a frame does not contain a valid message", "use matching versions of hub and spoke";
        BlobMissing: "the hub's database is missing a blob of a plan", "sync the application; if it persists, restore the database";
        ReportInvalid: "the hub cannot read a report; the report is skipped", "use matching versions of hub and spoke";
        UnorderedReport: "a cluster reports on a destination for which this hub never issued a directive",
            "find out whether another party has issued directives with this hub's key, or whether the hub was restored from a backup";
        ClaimImplausible: "a spoke reports an epoch or sequence that no hub has reached; it is ignored", "check the spoke";
        ClaimRateLimited: "a spoke repeatedly reports directives that this hub does not know; its claims are temporarily ignored",
            "check the spoke";
        MetadataRateLimited: "the metadata of a spoke changes too often; it is temporarily not stored", "check the spoke";
        SequenceUsedUp: "the hub's key has used every sequence at a destination",
            "create a hub with another key (`attest hub init`), pin it with `attest trust install`, and join the clusters to it";
        EpochRaised: "a spoke holds directives of a later epoch; the hub starts a new one",
            "none after a restore from a backup; otherwise, find out who has the hub's key";
    }

    "The hub's process and database", seen in "the hub's log, `attest-hub`, `attest hub`, API" {
        HomeExists: "the hub's home already exists and is not empty", "choose another `--home`, or remove it if no hub needs it";
        HomeMissing: "the directory does not contain a hub", "create one with `attest hub init`";
        HomeOwner: "the owner of a file cannot be changed to the owner of the hub's home", "run the command as that user";
        HomeFile: "a file in the hub's home cannot be read or written", "check permissions and free space";
        HomeSettings: "the hub's settings cannot be read", "restore the hub's home from a backup";
        AdvertiseInvalid: "an advertised address is malformed", "use HOST:PORT with a name and port that spokes and operators can reach";
        StoreMissing: "the hub's database is missing", "restore it from a backup";
        StoreExists: "the hub's database already exists", "choose another `--home`";
        StoreLocked: "the hub's database is in use by another process", "stop that process first";
        StoreOpen: "the hub's database cannot be opened", "check permissions; restore it from a backup";
        StoreRead: "the hub's database cannot be read", "check the disk; restore it from a backup";
        StoreCommit: "a write to the hub's database failed", "check the disk; repeat the command";
        StoreUnknown: "the outcome of a write to the hub's database is unknown", "check the current state, then repeat the missing changes";
        StoreFormat: "the hub's database contains a record that this version cannot read", "use the version that wrote it";
        DiskFull: "the disk that holds the hub's database is full", "free up space and repeat the failed operation";
        AddressInUse: "the address cannot be bound", "choose another address, or stop the process that uses it";
        MetricsInvalid: "the metrics cannot be registered", "report it as a bug";
        ServeFailed: "an address is no longer served", "see the message";
        TaskEnded: "a task ended unexpectedly, so the process exits", "see the preceding log entries";
        TaskPanicked: "a task panicked, so the process exits", "report it as a bug";
        StartInterrupted: "the process was stopped while it was starting", "none";
        VariableRenamed: "an environment variable has a new name", "use the name in the message";
    }

    "API and operators", seen in "API, `attest gitops`, `attest hub operator`" {
        OperatorUnknown: "no operator's certificate has this serial number", "`attest hub operator list` shows the serial numbers";
        RequestLifetime: "a request for an operator's certificate asks for a lifetime outside the limits", "ask for 10 minutes to 30 days";
        RequestUsername: "the user name of a request for an operator's certificate is empty or too long", "log in as another user";
        SpokeAddressUnknown: "the hub has no address for spokes of other clusters",
            "set `spokes.address` of the chart, or wait for the address of the load balancer";
        VerificationRequired: "the configuration would switch verification off",
            "remove `verificationEnabled: false`; relax the trust policy of a cluster instead";
        WebhookUnsigned: "a webhook carries no signature of the configured key",
            "set the same key at the Git server and in Secret attest-gitops-webhook";
        SecretInConfigMap: "a secret stands in a ConfigMap, which more people may read than Secrets", "mount Secret attest-gitops-webhook";
        PolicyUnavailable: "policy bundles are configured, and this version evaluates none; nothing new is deployed",
            "remove `policies.bundle` from ConfigMap attest-gitops-config";
        ViewerReadOnly: "a viewer asked for a change", "log in as operator, or ask for `attest hub operator issue NAME`";
        OperatorRevoked: "the operator's certificate is revoked", "run `attest hub operator issue NAME` on the hub's machine";
        OperatorUnreadable: "the state of the operator's certificate cannot be read",
            "change the owner of the files in the home's `operators` directory to the hub's user";
        HandshakeFailed: "a TLS connection to the API failed", "see the message; use an operator's certificate of this hub";
        HandshakeTimeout: "a TLS connection to the API was not established in time", "check the network";
        HandshakeLimit: "too many connections to the API are being established", "try again later";
        AcceptFailed: "the API cannot accept a connection", "check the limit of open files";
        RouteUnknown: "the hub's API has no such path", "use the same version of `attest` and the hub";
        MethodNotAllowed: "the path does not support the method", "use the same version of `attest` and the hub";
        BodyTooLarge: "the request is too large", "send a smaller request";
        BodyUnreadable: "the body of the request cannot be read", "try again";
        ContentTypeUnsupported: "the body of the request is not declared as JSON", "set `Content-Type: application/json`";
        OriginNotAllowed: "a web page sent the request", "use `attest` or another client outside a browser";
        QueryUnknown: "the request has a query parameter that the path does not support", "remove it";
        FieldInvalid: "a field has an invalid value; the message names it", "correct the field";
        LabelInvalid: "a label or a label selector is not valid", "use the form in the message";
        DurationInvalid: "a duration is not valid", "write it with units, as in `10m` or `1h30m`";
        StageCount: "there are more than 31 stages", "remove some";
        StageDuplicate: "two stages have one name", "use another name";
        StageWeightRange: "the weight of a stage is not a whole number from 1 to 100", "correct the weight";
        StageWeightOrder: "a stage does not raise the weight that an earlier stage gave a destination", "use a higher weight";
        StageClusterUnknown: "a stage names a cluster that is not a destination of the application",
            "correct the name, or add the cluster to `destinations`";
        StageEmpty: "a stage has no members", "correct its name, or set `clusters` or `clusterSelector`";
        DestinationNeverFull: "no stage brings a destination to weight 100", "add a stage that selects it, or set its `stage`";
        FieldUnknown: "a field is unknown", "correct its name, or remove it";
        FeatureNotAvailable: "a field is not supported by this version", "remove it";
        RolloutUnknown: "the application has no rollout by stages", "`attest gitops rollout list` shows the rollouts";
        RolloutState: "the state of the rollout does not allow the command",
            "see the message; `attest gitops rollout get NAME` shows the state";
        ApplicationUnknown: "no application has this name", "`attest gitops app list` shows the applications";
        DestinationDuplicate: "a destination is listed twice", "remove one of the two";
        Accepted: "the hub uses the newest version of the resource", "none";
        OtherHub: "another hub manages the resource",
            "uninstall one of the hubs; to hand a resource over, clear `status.hub` with `kubectl patch --subresource=status`";
        RemovalRefused: "the resource is deleted, and the trust policy of a cluster does not allow the hub to remove the application",
            "allow it in that policy, or set the annotation `attest.continuu.ms/orphan: \"true\"` to leave everything running";
        ResourceRejected: "the API server of the hub rejected a resource; the message states why", "correct the manifest";
        ResourcesUnavailable: "the hub cannot watch AttestApplications",
            "`kubectl apply -f deploy/crds/`; check the API server and the rights of the hub's account";
        RemovalUnconfirmed: "`app apply` would remove the application from destinations that the manifest no longer names",
            "`attest gitops app apply --yes`; `PUT /v1/applications?remove=true`; on a resource, `attest.continuu.ms/confirm-removal`";
    }

    "Repositories", seen in "conditions, the hub's log and metrics, `attest gitops repo`, `attest run`" {
        RepositoryUrlRefused: "the address of the repository is not allowed; the message states the rule",
            "correct the address, or start the hub with the flag in the message";
        RepositoryUnknown: "the repository has not been added", "`attest gitops repo list` shows the repositories";
        RepositoryAddress: "the host of the repository resolves to an address that the hub does not connect to",
            "for a repository on the hub's machine, run `attest gitops repo add URL --allow-loopback`";
        RepositoryRedirected: "the repository has moved to another host, and such redirects are not followed",
            "set `repoURL` to the new address";
        RepositoryUnreachable: "the repository cannot be reached", "check the address, the network and the server";
        RepositoryNotFound: "the server has no such repository", "check the path, and that the credentials grant read access";
        RepositoryLimit: "the repository exceeds a limit; the message names it", "reduce the size or count named in the message";
        SourceTimedOut: "the repository did not respond in time", "check the server and the network";
        SourceFiles: "a local file cannot be read or written while reading the repository", "check free space and permissions";
        Interrupted: "reading the repository was interrupted", "none; it is retried automatically";
        AuthenticationFailed: "the server refused the credentials, or requires credentials",
            "provide valid credentials with `attest gitops repo add`";
        SshKeyMissing: "the repository uses ssh, but no key is configured", "`attest gitops repo add URL --ssh-key F --known-hosts F`";
        HostKeyRefused: "the host key of the server is not known",
            "compare it with the server's own key, then run `attest gitops repo add --known-hosts F`";
        CertificateRefused: "the certificate of the server is not trusted", "`attest gitops repo add --ca-file F`";
        CredentialCanPush: "the hub's credential can push to the repository", "restrict it to read access";
        CredentialUnused: "the scheme of the URL does not use this credential", "remove the flag or field, or correct the URL";
        CredentialIncomplete: "one of two flags or fields that belong together is missing", "provide both";
        CredentialFile: "a credential file cannot be read", "check the path and permissions";
        CredentialContent: "a credential file does not have the expected content", "correct the file";
        RevisionMalformed: "the revision is not a branch, tag, commit id or HEAD", "correct `targetRevision`";
        ReferenceNotFound: "the repository has no such branch or tag", "push it, or correct the revision";
        ReferenceAmbiguous: "several references have this name", "use the full name of one of them";
        CommitNotFound: "the server does not provide the commit", "use a branch or tag that contains it";
        CommitStructure: "the commit is not well-formed", "recreate the commit with git";
        CommitMissing: "the repository has no commit, or does not contain the source root", "commit the source root first";
        GitProtocol: "the server does not follow the Git protocol", "check that the address is a Git repository";
        GitProgram: "a git command failed", "see its message";
        ProgramMissing: "a required program cannot be run", "install it";
        TreePath: "a path in the repository is not allowed", "rename it";
        TreeSpecialFile: "a file in the work tree is a pipe, socket or device", "remove it";
        TreeSymlink: "a file in the source root is a symbolic link", "commit the file itself";
        TreeSubmodule: "the source root contains a submodule", "commit its files, or move it elsewhere";
        TreeLfsPointer: "a file is a Git LFS pointer", "commit the file itself";
        PathMissing: "the directory is not in the repository at this commit", "correct the path";
        PathRefused: "a path points outside the repository or is malformed", "correct the path";
        IndexConflict: "a file has an unfinished merge", "resolve it and `git add` the file";
        NotAWorkTree: "the directory is not inside a Git work tree", "run the command in a clone of the repository";
    }

    "Rendering", seen in "conditions, the hub's log and metrics, `attest run`" {
        OverlayMissing: "there are no manifests for the destination", "correct `path`, or add one of the directories in the message";
        ManifestsMissing: "the directory has no YAML files and no kustomization", "correct the path";
        YamlRefused: "a YAML file cannot be read, or parsers would interpret it differently", "correct the line named in the message";
        RemoteResource: "a kustomization refers to something outside the repository", "commit it; rendering has no network access";
        ResourceMissing: "a kustomization refers to a missing file", "correct it, or widen `sourceRoot`";
        RendererPlugin: "a kustomization runs another program", "render it in CI and commit the result";
        KustomizationLimit: "too many kustomizations refer to each other", "simplify the overlay";
        RendererMissing: "kustomize or kubectl cannot be run; the previous release keeps running", "install kustomize on the hub";
        RendererFailed: "kustomize failed", "fix the error in its message";
        RendererKilled: "the system killed the render process; the previous release keeps running", "give the hub more memory";
        RenderTimedOut: "rendering did not finish in time; the previous release keeps running, and the next attempts are made less often",
            "simplify the overlay";
        RenderLimit: "rendering needs more memory, processor time, files, values or output than is allowed; the message names the limit",
            "make the manifests smaller or simpler, with fewer aliases";
        RenderBusy: "too many renderings of slow repositories wait; the previous release keeps running", "wait; make slow overlays simpler";
        RenderNotIsolated: "the system does not isolate the process that renders",
            "use a kernel with seccomp, or allow it with `--allow-unisolated-rendering`";
        RenderWorkerFailed: "the process that renders ended without a result; the previous release keeps running",
            "see the message; check memory and the program's file";
        RenderFiles: "a local file cannot be read or written while rendering; the previous release keeps running",
            "check free space and permissions";
    }

    "CI", seen in "`attest run`, `attest release`, `attest init`" {
        GitChangesBytes: "attributes or settings of Git make the bytes of a file on disk differ from those that a commit contains",
            "remove the attribute of the file, such as `eol`, `ident` or `filter`";
        NotStaged: "a file that is rendered is not in the Git index", "`git add` the file, then run `attest run` again";
        RecipeMissing: "there is no attest.yaml", "`attest init` creates one";
        RecipeSyntax: "attest.yaml is not valid YAML", "correct the line named in the message";
        RecipeField: "a field of attest.yaml is unknown or invalid", "correct the field";
        RecipeVariable: "a variable in attest.yaml is not set", "set it in the CI environment";
        EnvironmentUnknown: "attest.yaml has no render for the environment", "add one, or correct the name";
        StepFailed: "a step failed; nothing is signed", "see the output of the step";
        ResultStale: "a step did not write its result; the existing file predates the step", "correct the path of the result";
        ResultMissing: "a step did not write its result", "correct the path of the result";
        ResultMalformed: "the result of a step cannot be parsed", "write it in a supported format";
        ResultBlob: "a blob in an image layout does not match its digest", "rebuild the image";
        NoTests: "the result contains no tests", "correct the test step";
        ReleaseUnknown: "there is no such release below `.attest`", "see the counters in the message";
        ReleaseUnusable: "the earlier release cannot be signed again", "see the message";
        TimeOutOfRange: "the time or the counter is out of range", "correct the clock in CI";
        SymbolicLink: "a signed file would be written through a symbolic link", "remove the link";
        Files: "a file cannot be read or written", "check free space and permissions";
        SigningKeyMissing: "there is no signing key", "set the variable in the message; `attest key gen` creates a key";
        SigningKeyInRepository: "the private key is inside the repository",
            "move it elsewhere; generate a new one if it was ever committed";
        SigningKeyUnreadable: "the signing key cannot be read", "check the path and permissions";
    }

    "Installation", seen in "`attest gitops cluster add`, `attest trust install`" {
        InstallRefused: "the API server rejected part of the installation", "see the message; check your rights in the cluster";
        InstallManifest: "a manifest is not part of an installation", "report it as a bug";
        DefinitionNotEstablished: "the API server does not serve a kind that was just defined", "try again";
    }
}
