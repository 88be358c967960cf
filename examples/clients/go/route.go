// Package route asks a sidecar for a model, and has an answer without it too.
//
// llmrouterv1 is what protoc-gen-go and protoc-gen-go-grpc make of proto/llmrouter/v1.
package route

import (
	"context"
	_ "embed"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	llmrouterv1 "llmrouter/v1"
)

// A copy of proto/llmrouter/v1/routing_grpc_service_config.json.
//
//go:embed routing_grpc_service_config.json
var serviceConfig string

// Models holds the connection: keep one for the life of the process.
type Models struct {
	client       llmrouterv1.RoutingServiceClient
	defaultModel string
}

// New connects lazily: it succeeds without a sidecar.
func New(address, defaultModel string) (*Models, error) {
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A proxy that is meant for the internet knows nothing of a sidecar.
		grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		return nil, err
	}
	return &Models{llmrouterv1.NewRoutingServiceClient(connection), defaultModel}, nil
}

// Choose gives the model for a user's message; the default if the sidecar is away or late.
func (m *Models) Choose(ctx context.Context, text string) string {
	part := &llmrouterv1.Part{Part: &llmrouterv1.Part_Text{Text: text}}
	message := &llmrouterv1.Message{Role: llmrouterv1.Role_ROLE_USER, Parts: []*llmrouterv1.Part{part}}
	request := &llmrouterv1.RouteRequest{Messages: []*llmrouterv1.Message{message}}
	answer, err := m.client.Route(ctx, request)
	if err != nil {
		log.Printf("no routing: %v", err)
		return m.defaultModel
	}
	return answer.GetDecision().GetModel().GetUpstreamModel()
}
