//! The API of `protocol/proto/agent.proto`: requests to calls, results to statuses.
//!
//! The peer is the host, which the agent trusts; sizes are checked all the same.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bulkhead_protocol::agent::server::{self as api, Agent, create_agent};
use ttrpc::{
    Code, Error as RpcError, Result as RpcResult,
    asynchronous::{Service, TtrpcContext},
    get_status,
};

use crate::{
    container::{ContainerError, Containers, LaunchError},
    cpu::{self, CpuError},
    helper::report::FailureKind,
    memory,
    network::{self, Network},
    power::Power,
    reaper::Exit,
    streams::Streams,
};

/// The service.
pub struct Server {
    containers: Arc<Containers>,
    power: Arc<Power>,
    streams: Arc<Streams>,
    network: Mutex<Network>,
}

impl Server {
    /// The dispatch table of a server of these containers.
    pub fn service(
        containers: Arc<Containers>,
        power: Arc<Power>,
        streams: Arc<Streams>,
    ) -> HashMap<String, Service> {
        create_agent(Arc::new(Self { containers, power, streams, network: Mutex::default() }))
    }
}

/// The status that a caller sees for an error.
fn status(error: &ContainerError) -> RpcError {
    let code = match error {
        ContainerError::NoContainer(_) | ContainerError::NoProcess(..) => Code::NOT_FOUND,
        ContainerError::ContainerExists(_) | ContainerError::ProcessExists(..) => {
            Code::ALREADY_EXISTS
        }
        ContainerError::State { .. } | ContainerError::Ended | ContainerError::NoTerminal => {
            Code::FAILED_PRECONDITION
        }
        ContainerError::Id(_)
        | ContainerError::LargeSpec(_)
        | ContainerError::Spec(_)
        | ContainerError::Signal(_)
        | ContainerError::Size(_)
        | ContainerError::Limits(_)
        | ContainerError::SharedNamespace(_)
        | ContainerError::Launch(LaunchError::Stream(_)) => Code::INVALID_ARGUMENT,
        ContainerError::Launch(LaunchError::Refused(kind, _)) => match kind {
            FailureKind::ProgramMissing => Code::UNIMPLEMENTED,
            FailureKind::ProgramDenied => Code::PERMISSION_DENIED,
            FailureKind::InvalidSpec => Code::INVALID_ARGUMENT,
            FailureKind::Step => Code::INTERNAL,
        },
        ContainerError::ManyProcesses(_) | ContainerError::ManyContainers => {
            Code::RESOURCE_EXHAUSTED
        }
        _ => Code::INTERNAL,
    };
    RpcError::RpcStatus(get_status(code, error.to_string()))
}

fn reply<T>(result: Result<T, ContainerError>) -> RpcResult<T> {
    result.map_err(|error| status(&error))
}

fn empty(result: Result<(), ContainerError>) -> RpcResult<api::Empty> {
    reply(result).map(|()| api::Empty::new())
}

/// Runs a call to its end even when its caller gives up: half a container helps nobody.
async fn finish<T: Send + 'static>(
    call: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Result<T, ContainerError> {
    match tokio::spawn(call).await {
        Ok(result) => result,
        Err(_cancelled) => Err(ContainerError::ShuttingDown),
    }
}

#[async_trait]
impl Agent for Server {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> RpcResult<api::CreateContainerResponse> {
        let containers = Arc::clone(&self.containers);
        let pid = reply(finish(async move { containers.create(request).await }).await)?;
        Ok(api::CreateContainerResponse { pid, ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::Empty> {
        empty(self.containers.start(&request.container_id).await)
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> RpcResult<api::WaitResponse> {
        let (code, signal) = match reply(self.containers.wait(&request).await)? {
            Exit::Code(code) => (code.into(), 0),
            Exit::Signal(signal) => (0, signal.into()),
        };
        Ok(api::WaitResponse { code, signal, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: api::SignalRequest) -> RpcResult<api::Empty> {
        empty(self.containers.signal(&request))
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecRequest,
    ) -> RpcResult<api::ExecResponse> {
        let containers = Arc::clone(&self.containers);
        let pid = reply(finish(async move { containers.exec(request).await }).await)?;
        Ok(api::ExecResponse { pid, ..Default::default() })
    }

    async fn resize_tty(
        &self,
        _: &TtrpcContext,
        request: api::ResizeTtyRequest,
    ) -> RpcResult<api::Empty> {
        empty(self.containers.resize(&request))
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::ProcessesResponse> {
        Ok(api::ProcessesResponse {
            processes: reply(self.containers.processes(&request.container_id))?,
            ..Default::default()
        })
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::Empty> {
        empty(self.containers.pause(&request.container_id).await)
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::Empty> {
        empty(self.containers.resume(&request.container_id).await)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> RpcResult<api::Empty> {
        let containers = Arc::clone(&self.containers);
        empty(finish(async move { containers.update(&request).await }).await)
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::StatsResponse> {
        let stats_json = reply(self.containers.stats(&request.container_id))?;
        Ok(api::StatsResponse { stats_json, ..Default::default() })
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        request: api::OomRequest,
    ) -> RpcResult<api::OomResponse> {
        let kills = reply(self.containers.wait_oom(&request).await)?;
        Ok(api::OomResponse { kills, ..Default::default() })
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: api::Network,
    ) -> RpcResult<api::Empty> {
        // Short and without a place to stop half-way: nothing else runs meanwhile.
        let mut network = self.network.lock().unwrap_or_else(|e| e.into_inner());
        match network.configure(&request) {
            Ok(()) => Ok(api::Empty::new()),
            Err(error) => {
                let code = match error.is_invalid() {
                    true => Code::INVALID_ARGUMENT,
                    false => Code::INTERNAL,
                };
                Err(RpcError::RpcStatus(get_status(code, format!("network: {error}"))))
            }
        }
    }

    async fn serve_names(
        &self,
        _: &TtrpcContext,
        request: api::NamesRequest,
    ) -> RpcResult<api::Empty> {
        let refused = |code, text| RpcError::RpcStatus(get_status(code, format!("names: {text}")));
        let invalid = |text| refused(Code::INVALID_ARGUMENT, text);
        let stream = self.streams.claim(request.stream).await;
        let stream = stream.map_err(|error| invalid(error.to_string()))?;
        let stream = stream.ok_or_else(|| invalid("no stream".to_owned()))?;
        match network::serve_names(stream) {
            Ok(()) => Ok(api::Empty::new()),
            Err(error) => Err(refused(Code::INTERNAL, error.to_string())),
        }
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: api::OnlineCpusRequest,
    ) -> RpcResult<api::Empty> {
        // Takes the kernel a moment for each CPU, which other calls need not wait for.
        let online = tokio::task::spawn_blocking(move || cpu::online(request.count));
        match online.await {
            Ok(Ok(())) => Ok(api::Empty::new()),
            Ok(Err(error)) => {
                let code = match error {
                    CpuError::Count { .. } => Code::INVALID_ARGUMENT,
                    _ => Code::INTERNAL,
                };
                Err(RpcError::RpcStatus(get_status(code, error.to_string())))
            }
            Err(_cancelled) => empty(Err(ContainerError::ShuttingDown)),
        }
    }

    async fn guest_memory(
        &self,
        _: &TtrpcContext,
        _: api::Empty,
    ) -> RpcResult<api::GuestMemoryResponse> {
        memory::figures().map_err(|error| {
            let text = format!("read /proc/meminfo: {error}");
            RpcError::RpcStatus(get_status(Code::INTERNAL, text))
        })
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> RpcResult<api::Empty> {
        let containers = Arc::clone(&self.containers);
        let id = request.container_id;
        empty(finish(async move { containers.delete(&id).await }).await)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::Empty) -> RpcResult<api::Empty> {
        let (containers, power) = (Arc::clone(&self.containers), Arc::clone(&self.power));
        let off = async move {
            containers.kill_all().await;
            power.write_back();
            power.off();
            Ok(())
        };
        empty(finish(off).await)
    }
}
