#!/usr/bin/env bash
# Register the Entra app that guards the HTTP side, and hand its id to the next azd provision.
set -euo pipefail

name=${1:-sessionferry-$(azd env get-value AZURE_ENV_NAME)}
app=$(az ad app list --display-name "$name" --query '[0].appId' --output tsv)
if [[ -z $app ]]; then
  app=$(az ad app create --display-name "$name" --sign-in-audience AzureADMyOrg \
    --query appId --output tsv)
  az ad app update --id "$app" --identifier-uris "api://$app"
  az ad sp create --id "$app" --output none
fi
azd env set FERRY_API_CLIENT_ID "$app"
echo "$name is $app. Now run azd provision."
