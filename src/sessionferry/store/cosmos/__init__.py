"""The store on Azure Cosmos DB for NoSQL."""
