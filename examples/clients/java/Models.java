import com.google.gson.Gson;
import com.llmrouter.v1.Message;
import com.llmrouter.v1.Part;
import com.llmrouter.v1.Role;
import com.llmrouter.v1.RouteRequest;
import com.llmrouter.v1.RoutingServiceGrpc;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import java.util.Map;

/**
 * Asks a sidecar for a model, and has an answer without it too. Keep one for the life of the
 * process: it holds the connection.
 *
 * <p>com.llmrouter.v1 is what protoc and protoc-gen-grpc-java make of proto/llmrouter/v1.
 */
public final class Models {
  private final RoutingServiceGrpc.RoutingServiceBlockingStub sidecar;
  private final String defaultModel;

  /** @param serviceConfig the text of proto/llmrouter/v1/routing_grpc_service_config.json */
  public Models(String address, String defaultModel, String serviceConfig) {
    @SuppressWarnings("unchecked")
    Map<String, ?> config = new Gson().fromJson(serviceConfig, Map.class);
    this.sidecar =
        RoutingServiceGrpc.newBlockingStub(
            ManagedChannelBuilder.forTarget(address)
                .usePlaintext()
                .defaultServiceConfig(config)
                .enableRetry()
                .build());
    this.defaultModel = defaultModel;
  }

  /** The model for a user's message; the default if the sidecar is away or late. */
  public String choose(String text) {
    Message message =
        Message.newBuilder()
            .setRole(Role.ROLE_USER)
            .addParts(Part.newBuilder().setText(text))
            .build();
    try {
      return sidecar
          .route(RouteRequest.newBuilder().addMessages(message).build())
          .getDecision()
          .getModel()
          .getUpstreamModel();
    } catch (StatusRuntimeException error) {
      System.err.println("no routing: " + error.getStatus().getCode());
      return defaultModel;
    }
  }
}
